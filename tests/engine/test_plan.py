from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engine.plan import Outlook, broken, plan_package
from edgekit.engine.profiles import parse_shapes
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.targets import jetpacks, target_of
from tests.data import ROOT
from tests.engine.conftest import add_variant
from tests.engine.test_operators import suppression
from tests.quantize.nets import conv_net, images, model_of, random
from tests.quantize.packages import package_of


def planned(package: Package, *names: str, **options: object) -> list[Outlook]:
    return plan_package(package, [target_of(n) for n in names], **options)  # type: ignore[arg-type]


def one_node(tmp_path: Path, node: onnx.NodeProto, *, weights: dict[str, np.ndarray] | None = None) -> Package:
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'head.odd', 'op']"
    model = model_of([node], weights or {}, {"x": (1, 4, 8, 8)}, ["y"], opset=20)
    return package_of(tmp_path / "odd.edge", model)


def test_a_plain_network_works_from_the_first_strongly_typed_jetpack_on(net: Package) -> None:
    found = {o.jetpack: o for o in planned(net, "orin-nano")}
    assert set(found) == {"5.1", "6.0", "6.1", "6.2", "7.2"}
    for version, outlook in found.items():
        assert (outlook.verdict == "works") == (version >= "6.1"), version
        assert outlook.release == jetpacks()[version].tensorrt
    assert "JetPack 6.1" in found["6.0"].problems[0]
    assert broken(list(found.values())) == []  # some JetPack works
    (pinned,) = planned(net, "orin-nano", jetpack="6.0")
    assert broken([pinned]) == ["orin-nano (fp16)"]


def test_targets_of_every_kind(net: Package) -> None:
    found = {o.target: o for o in planned(net, "rtx-4090", "h200", "sm_86", "l4")}
    assert found["rtx-4090"].module == "tensorrt-rtx"
    assert found["sm_86"].module == "tensorrt-rtx"
    assert found["h200"].module == found["l4"].module == "tensorrt"
    assert all(o.verdict == "works" for o in found.values())
    assert "first load" in found["rtx-4090"].portability
    assert "--hardware same" in found["h200"].portability
    assert {o.jetpack for o in planned(net, "sm_110")} == {"7.0", "7.1", "7.2", "7.2.2"}


def test_an_operator_that_a_release_lacks_names_its_module_and_the_first_that_has_it(tmp_path: Path) -> None:
    node = helper.make_node("DeformConv", ["x", "w", "o"], ["y"], name="deform", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    weights = {"w": random(4, 4, 3, 3), "o": np.zeros((1, 18, 8, 8), np.float32)}
    package = one_node(tmp_path, node, weights=weights)
    found = {o.jetpack: o for o in planned(package, "agx-orin")}
    assert any("TensorRT 8.6 has no DeformConv (first in head.odd): TensorRT has it from 10.1" in p
               for p in found["6.0"].problems)  # fmt: skip
    assert found["6.2"].verdict == "works"
    (row,) = [o for o in found["6.0"].operators if o.operator == "DeformConv"]
    assert (row.how, row.count, row.nodes) == ("missing", 1, ("head.odd",))
    (rtx,) = planned(package, "rtx-4090")
    assert rtx.verdict == "breaks"
    assert "TensorRT-RTX has no DeformConv (first in head.odd): only TensorRT has it." in rtx.problems


def test_suppression_that_tensorrt_rtx_parses_and_cannot_build_breaks_there_alone(tmp_path: Path) -> None:
    package = package_of(tmp_path / "odd.edge", suppression())
    (rtx,) = planned(package, "rtx-4090")
    assert rtx.verdict == "breaks"
    assert "End the model in plugins_trt.torch.decode_nms" in rtx.problems[0]
    assert {o.jetpack: o.verdict for o in planned(package, "orin-nx")}["6.2"] == "works"


def test_unsure_is_neither_yes_nor_no(tmp_path: Path) -> None:
    package = one_node(tmp_path, helper.make_node("Gelu", ["x"], ["y"], name="gelu"))
    found = {o.jetpack: o for o in planned(package, "agx-orin")}
    assert (found["6.2"].verdict, found["7.2"].verdict) == ("unsure", "works")
    assert "may lack Gelu" in found["6.2"].notes[0]
    assert broken(list(found.values())) == []


def test_demands_on_a_node_break(tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="cubic")
    package = one_node(tmp_path, node, weights={"scales": np.array([1, 1, 2, 2], np.float32)})
    (found,) = planned(package, "orin-nano", jetpack="7.2")
    assert found.verdict == "breaks"
    assert (
        "TensorRT 10.16 does not take Resize (first in head.odd): its mode is cubic; nearest and linear run."
        in found.problems
    )


def custom(tmp_path: Path, *, body: bool, plugins: tuple[str, ...] = ()) -> Package:
    function = helper.make_function(
        "acme", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Double", ["x"], ["d"], name="double", domain="acme"),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16])],
        [numpy_helper.from_array(random(16, 16), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function] if body else [], ir_version=10)
    package = package_of(tmp_path / "custom.edge", model)
    with package.edit() as writer:
        writer.path("fp32.onnx").write_bytes(model.SerializeToString())
        fields = {"id": "fp32", "precision": "fp32", "format": "onnx", "target": "any", "plugins": plugins}
        writer.put(writer.variant_of("fp32.onnx", **fields))
        return writer.commit()


def test_custom_operators_by_body_by_plugin_and_by_neither(tmp_path: Path) -> None:
    def how(package: Package, name: str, jetpack: str | None) -> str:
        (found,) = planned(package, name, jetpack=jetpack)
        return next(o.how for o in found.operators if o.operator == "acme::Double")

    with_body = custom(tmp_path, body=True, plugins=("acme::Double",))
    assert how(with_body, "agx-orin", "6.2") == "function body"  # plugins ahead of time came with 10.9
    assert how(with_body, "agx-orin", "7.2") == "plugin"
    assert how(with_body, "agx-orin", "6.0") == "missing"
    assert how(with_body, "rtx-4090", None) == "function body"
    without = custom(tmp_path / "b", body=False) if (tmp_path / "b").mkdir() is None else None
    assert without is not None
    (found,) = planned(without, "agx-orin", jetpack="7.2")
    assert "has no acme::Double (first in double): it is not a standard operator" in found.problems[0]


def test_precision_against_the_chip(net: Package) -> None:
    half = add_variant(net, "bf16", conv_net())
    (turing,) = planned(half, "t4", variants=["bf16"])
    assert any("Turing has no bfloat16" in p for p in turing.problems)
    (ada,) = planned(half, "rtx-4090", variants=["bf16"])
    assert not any("bfloat16" in p for p in ada.problems)
    (plain,) = planned(half, "sm_75", variants=["fp32"])
    assert any("no FP32 products on Turing" in p for p in plain.problems)
    (slow,) = planned(half, "h200", variants=["fp32"])
    assert slow.verdict == "works"
    assert any("--precision fp16" in n for n in slow.notes)
    (xavier,) = planned(half, "agx-xavier", variants=["fp16"])
    assert xavier.verdict == "breaks"


def test_memory_grows_with_the_largest_shapes(net: Package) -> None:
    def need(shapes: str) -> Outlook:
        (found,) = planned(net, "orin-nano-4gb", profiles=[parse_shapes(shapes)], jetpack="7.2")
        return found

    small, large = need("x:1x3x12x12"), need("x:1x3x12x12..1x3x12x12..2000000x3x12x12")
    assert small.memory_gb is not None
    assert large.memory_gb is not None
    assert small.verdict == "works"
    assert small.have_gb == 4
    # at the widest place: 8 channels of 12x12 in and out of a convolution, two bytes each
    assert large.memory_gb - small.memory_gb >= 2_000_000 * 2 * 8 * 144 * 2 / 1e9
    assert large.verdict == "breaks"
    assert any("Give smaller ones with --shapes" in p for p in large.problems)


def test_the_bound_is_the_data_sheets(net: Package) -> None:
    slow, fast = (planned(net, n)[0].bound_ms for n in ("rtx-3060", "rtx-5090"))
    assert slow is not None
    assert fast is not None
    assert slow > fast > 0
    assert planned(net, "sm_86")[0].bound_ms is None  # a bare chip has no figures
    assert planned(net, "h200", variants=["fp32"])[0].bound_ms is None


def test_the_real_parser_is_asked_where_it_serves(rtx: TrtModule, tmp_path: Path, net: Package) -> None:
    assert planned(net, "rtx-4090")[0].parsed
    assert not planned(net, "orin-nx")[0].parsed
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first_det"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Det", ["r"], ["b"], name="second_det"),
    ]
    package = package_of(tmp_path / "det.edge", model_of(nodes, {}, {"x": (2, 3, 3)}, ["a", "b"]))
    (found,) = planned(package, "rtx-4090")
    said = [p for p in found.problems if "The parser of TensorRT-RTX refuses" in p]
    assert [p.partition("refuses ")[2] for p in said] == [
        "Det (node 'first_det'): its parser does not have this operator.",
        "Det (node 'second_det'): its parser does not have this operator.",
    ]


def test_conditions_inside_conditions_are_a_doubt(tmp_path: Path) -> None:
    def branch(name: str, node: onnx.NodeProto, out: str) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])

    deep = helper.make_node(
        "If", ["c"], ["i"], name="inner",
        then_branch=branch("a", helper.make_node("Relu", ["x"], ["a"]), "a"),
        else_branch=branch("b", helper.make_node("Neg", ["x"], ["b"]), "b"),
    )  # fmt: skip
    node = helper.make_node(
        "If", ["c"], ["y"], name="outer",
        then_branch=branch("t", deep, "i"),
        else_branch=branch("e", helper.make_node("Abs", ["x"], ["e"]), "e"),
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (found,) = planned(package_of(tmp_path / "if.edge", model), "orin-nx", jetpack="7.2")
    assert found.verdict == "unsure"
    assert "holds another If" in found.notes[0]


def test_without_a_variant_for_gpus_the_reference_is_judged(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(4)})
    assert {o.variant for o in planned(package, "orin-nano")} == {"fp32"}


def test_a_jetpack_that_is_not_there(net: Package) -> None:
    with pytest.raises(UsageError, match=r"'9\.9' is not known; expected one of 5\.1, 6\.0"):
        planned(net, "orin-nano", jetpack="9.9")
    with pytest.raises(UsageError, match=r"JetPack 5\.1 does not run on thor-t5000"):
        planned(net, "thor-t5000", jetpack="5.1")


def test_no_tensorrt_is_loaded_for_a_jetson(net: Package) -> None:
    code = (
        "import sys; from edgekit.cli.main import main; "
        f"code = main(['compile', {str(net.path)!r}, '--plan', '--target', 'orin-nano', 'h200']); "
        "sys.exit(code or any(m.startswith('tensorrt') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "works" in done.stdout
