from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit._lazy import available
from edgekit.engine.apply import compile_package
from edgekit.engine.conditions import conditions_resolved
from edgekit.engine.options import BuildOptions, build_digest
from edgekit.engine.plan import Outlook, plan_package
from edgekit.engine.plugins import plugged, plugged_for, sm_of
from edgekit.engine.profiles import Range
from edgekit.package import Package
from edgekit.quantize.fp16 import half_model
from edgekit.targets import target_of
from plugins_trt.body import add_functions, node_of
from plugins_trt.fuse import fused
from plugins_trt.layer_norm_residual import LayerNormResidual
from plugins_trt.registry import operator, operators
from tests.data import ROOT, data_path
from tests.engine.conftest import add_variant, saved
from tests.engine.fakes import RELEASES, fake_module
from tests.plugins_trt.checks import assert_close
from tests.plugins_trt.test_docs import follow
from tests.plugins_trt.test_norm_fuse import outputs
from tests.quantize.nets import model_of, random
from tests.quantize.packages import package_of

make = onnx.helper.make_node
HERE = Path(__file__).parent / "on_plugins"


def lstm_net(*, hidden: int = 24, opset: int = 17, lengths: bool = False) -> Any:
    """x [batch, 6, 16] through a product, an LSTM in both directions, and an LSTM of `hidden` with a residual norm."""
    weights: dict[str, np.ndarray] = {"p": random(16, 12), "ng": random(hidden) + 1, "nb": random(hidden)}
    lstms = []
    sizes = (("first", "t", 12, 8, 2), ("second", "m", 16, hidden, 1))
    for name, x, features, units, directions in sizes:
        weights[f"{name}.w"] = random(directions, 4 * units, features) * 0.3
        weights[f"{name}.r"] = random(directions, 4 * units, units) * 0.3
        weights[f"{name}.b"] = random(directions, 8 * units)
        inputs = [x, f"{name}.w", f"{name}.r", f"{name}.b"] + (["lengths"] if lengths else [])
        way = "bidirectional" if directions == 2 else "forward"
        lstms.append(make("LSTM", inputs, [f"{name}.y"], name=name, hidden_size=units, direction=way))
    weights["lengths"] = np.array([6, 6], np.int32)
    weights |= {"flat": np.array([0, 0, -1]), "one": np.array([1])}
    nodes = [
        make("MatMul", ["x", "p"], ["q"], name="product"),
        make("Transpose", ["q"], ["t"], perm=[1, 0, 2]),
        lstms[0],
        make("Transpose", ["first.y"], ["a"], perm=[0, 2, 1, 3]),
        make("Reshape", ["a", "flat"], ["m"]),
        lstms[1],
        make("Squeeze", ["second.y", "one"], ["s"]),
        make("Tanh", ["s"], ["u"]),
        make("Add", ["s", "u"], ["v"], name="residual"),
        make("LayerNormalization", ["v", "ng", "nb"], ["n"], name="norm"),
        make("Transpose", ["n"], ["y"], perm=[1, 0, 2]),
    ]
    value = onnx.helper.make_tensor_value_info
    used = {name for node in nodes for name in node.input}
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in weights.items() if n in used]
    inputs, outputs = [value("x", 1, ["batch", 6, 16])], [value("y", 1, ["batch", 6, hidden])]
    graph = onnx.helper.make_graph(nodes, "lstms", inputs, outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


@pytest.fixture
def sequence(tmp_path: Path) -> Package:
    """A package of `lstm_net` with the variant fp16."""
    rows = np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)
    package = package_of(tmp_path / "sequence.edge", lstm_net(), {"x": rows})
    return add_variant(package, "fp16", half_model(lstm_net()))


@pytest.mark.parametrize("half", [False, True])
def test_what_is_built_computes_what_the_variant_does(half: bool) -> None:
    """The nodes that become plugins are those that `fused` makes, with their functions in place of kernels."""
    model = half_model(lstm_net(opset=18)) if half else lstm_net(opset=18)
    before = model.SerializeToString()
    made = plugged(model, sm=110)
    assert model.SerializeToString() == before, "it works on a copy"
    assert [layer.operator for layer in made.layers] == ["edgekit::lstm"] * 2 + ["edgekit::layer_norm_residual"]
    assert [layer.instead_of for layer in made.layers] == [("first",), ("second",), ("residual", "norm")]
    assert not made.kept
    assert made.digests == {f"edgekit::{n}": operator(n).digest() for n in ("lstm", "layer_norm_residual")}
    assert [v.name for v in made.model.graph.input] == ["x"]
    assert [v.name for v in made.model.graph.output] == ["y"]
    with_bodies, fusions = fused(model, operators().values())
    assert len(fusions) == 3
    assert [n.op_type for n in with_bodies.graph.node] == [n.op_type for n in made.model.graph.node]
    feed = {"x": np.random.default_rng(1).standard_normal((3, 6, 16)).astype(np.float32)}
    assert_close(outputs(with_bodies, feed), outputs(model, feed), relative=1e-2 if half else 1e-4)


def test_operator_sets_before_the_functions_take_plugins_too() -> None:
    made = plugged(lstm_net(opset=17), sm=87)
    assert len(made.layers) == 3
    assert not made.model.functions
    assert {o.domain: o.version for o in made.model.opset_import} == {"": 17, "edgekit": 1}


@pytest.mark.parametrize("release", RELEASES)
def test_which_releases_take_plugins(release: str) -> None:
    module, notes = fake_module(release), []
    made = plugged_for(lstm_net(), module, sm=110, options=BuildOptions(), note=notes.append)
    assert (made is not None) == (release != "10.3")
    assert not notes
    assert plugged_for(lstm_net(), module, sm=110, options=BuildOptions(plugins=False)) is None
    flag = getattr(module.trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS", None)
    assert (flag is None) == (release == "10.3")
    if flag is not None:
        assert module.network_flags(plugins=True) == module.network_flags() + (1 << flag)


def test_tensorrt_rtx_keeps_what_the_model_has(rtx: Any) -> None:
    assert plugged_for(lstm_net(), rtx, sm=89, options=BuildOptions()) is None


@pytest.mark.parametrize(
    ("changes", "sm", "stays", "why"),
    [
        ({"hidden": 320}, 110, "second", "sizes up to 128"),
        ({"lengths": True}, 110, "first", "lengths"),
        ({}, 72, "", "sm_72 is too old for the kernels"),
    ],
)
def test_what_a_kernel_cannot_do_stays_and_says_why(changes: dict[str, Any], sm: int, stays: str, why: str) -> None:
    notes: list[str] = []
    made = plugged_for(lstm_net(**changes), fake_module("10.13"), sm=sm, options=BuildOptions(), note=notes.append)
    assert why in notes[0]
    if not stays:
        assert made is None
        assert notes[0].startswith("no layer becomes a plugin")
        return
    assert made is not None
    assert notes[0].startswith(f"{stays} stays as it is: ")
    assert "LSTM" in {node.op_type for node in made.model.graph.node}
    assert "edgekit::layer_norm_residual" in made.digests, "the others become plugins"


def with_node(columns: int) -> Any:
    """A model that has the operator itself, as a recipe makes it."""
    op = LayerNormResidual(keep_sum=False, int8=False)
    node = node_of(op, op.example((2, columns), "float32"), ["x", "x", "w", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(random(columns), "w")]
    inputs, outputs = [value("x", 1, ["batch", columns])], [value("y", 1, ["batch", columns])]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    return add_functions(model, tuple(operators().values()))


def test_a_recipes_own_nodes_become_plugins_or_keep_their_functions() -> None:
    made = plugged(with_node(64), sm=87)
    assert [(layer.how, layer.instead_of) for layer in made.layers] == [("plugin", ())]
    assert not made.model.functions
    notes: list[str] = []
    assert (
        plugged_for(with_node(40_000), fake_module("10.13"), sm=87, options=BuildOptions(), note=notes.append) is None
    )
    assert notes[0].startswith("layer_norm_residual keeps its function body: layer_norm_residual: rows of 40000")


def test_engines_for_older_gpus_too_have_kernels_for_them() -> None:
    assert sm_of(90, BuildOptions(hardware="ampere+")) == 80
    assert sm_of(90, BuildOptions(hardware="same")) == 90


def test_weights_that_are_refitted_keep_their_names() -> None:
    options = BuildOptions(refit=True)
    assert plugged_for(lstm_net(), fake_module("10.13"), sm=110, options=options) is None
    own = plugged_for(with_node(64), fake_module("10.13"), sm=110, options=options)
    assert own is not None
    assert len(own.digests) == 1


def test_another_kernel_is_another_build() -> None:
    digests = [build_digest(BuildOptions(), plugins=[["edgekit::lstm", source]]) for source in ("a", "b")]
    assert len({*digests, build_digest(BuildOptions(), plugins=[])}) == 3
    assert BuildOptions(plugins=False).suffix() == "-noplugins"
    assert BuildOptions(plugins=False).record() == {"plugins": False}


def outlooks(package: Package, *names: str, **options: Any) -> dict[tuple[str, str], Outlook]:
    found = plan_package(package, [target_of(n) for n in names], **options)
    return {(o.target, o.jetpack): o for o in found}


def test_the_plan_says_what_runs_as_a_plugin_where(sequence: Package) -> None:
    found = outlooks(sequence, "orin-nx", "thor-t5000", "rtx-4090", "h100")
    for (target, jetpack), outlook in found.items():
        plugins = target in ("thor-t5000", "h100") or jetpack == "7.2"
        assert {layer.how for layer in outlook.plugins} == {"plugin" if plugins else "as it is"}, (target, jetpack)
        assert {layer.operator for layer in outlook.plugins} == {"edgekit::lstm", "edgekit::layer_norm_residual"}
        names = {o.operator: o.how for o in outlook.operators}
        assert names.get("edgekit::lstm") == ("plugin" if plugins else None)
        assert ("LSTM" in names) != plugins
    (layer,) = [p for p in found["orin-nx", "6.2"].plugins if p.node == "norm"]
    assert layer.why == "plugins take TensorRT 10.9 or later, and not TensorRT-RTX"
    off = outlooks(sequence, "thor-t5000", plugins=False)
    assert not any(o.plugins for o in off.values())


def test_the_plan_of_a_recipes_own_nodes(tmp_path: Path) -> None:
    package = package_of(tmp_path / "own.edge", with_node(64))
    found = outlooks(package, "agx-orin", "rtx-4090")
    name = "edgekit::layer_norm_residual"
    for (target, jetpack), outlook in found.items():
        if jetpack in ("5.1", "6.0"):
            continue
        (op,) = [o for o in outlook.operators if o.operator == name]
        assert op.how == ("plugin" if jetpack >= "7" else "function body"), (target, jetpack)
        assert [layer.how for layer in outlook.plugins] == [op.how]
    off = outlooks(package, "agx-orin", jetpack="7.2", plugins=False)["agx-orin", "7.2"]
    assert [(o.operator, o.how) for o in off.operators] == [(name, "function body")]
    assert [(layer.how, layer.why) for layer in off.plugins] == [("function body", "--no-plugins")]


def test_a_detectors_nms_stays_and_says_what_to_use() -> None:
    nodes = [
        make("Transpose", ["s"], ["t"], perm=[0, 2, 1]),
        make("NonMaxSuppression", ["x", "t", "most", "iou", "score"], ["y"], name="nms"),
    ]
    value = onnx.helper.make_tensor_value_info
    limits = {"most": np.array([10]), "iou": np.array([0.5], np.float32), "score": np.array([0.3], np.float32)}
    graph = onnx.helper.make_graph(
        nodes,
        "detector",
        [value("x", 1, [1, 50, 4]), value("s", 1, [1, 50, 3])],
        [value("y", onnx.TensorProto.INT64, ["kept", 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in limits.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    notes: list[str] = []
    assert plugged_for(model, fake_module("10.16"), sm=87, options=BuildOptions(), note=notes.append) is None
    (note,) = notes
    assert note.startswith("nms stays as it is: it gives as many rows as boxes are kept")
    assert "plugins_trt.torch.decode_nms" in note


def test_the_lstm_of_a_real_voice_detector() -> None:
    """Silero VAD: operator set 15, and the LSTM in a branch that the sampling rate decides."""
    model = onnx.load(data_path("audio_silero_vad/silero_vad_16k_op15.onnx"))
    sizes = {"input": (1, 576), "state": (2, 1, 128)}
    resolved, _ = conditions_resolved(model, [{n: Range(min=s, opt=s, max=s) for n, s in sizes.items()}])
    made = plugged(resolved, sm=87)
    assert [(layer.operator, layer.how) for layer in made.layers] == [("edgekit::lstm", "plugin")]
    with_bodies, fusions = fused(onnx.version_converter.convert_version(resolved, 18), operators().values())
    assert len(fusions) == 1
    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {n: rng.standard_normal(s).astype(np.float32) / 5 for n, s in sizes.items()}
    feed["sr"] = np.array(16000)
    assert_close(outputs(with_bodies, feed), outputs(model, feed), relative=1e-5)


def compiled(
    package: Path, *arguments: str, release: str = "10.13", sm: str = "110", cuda: int = 99000, installed: Path = ROOT
) -> Any:
    """`edgekit compile --target this --json` on a machine with a GPU: driver and TensorRT are stand-ins."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc), to stand in for the CUDA driver")
    folder = package.parent / f"driver-{sm}-{cuda}"
    folder.mkdir(exist_ok=True)
    macros = [f"-DSM_MAJOR={sm[:-1]}", f"-DSM_MINOR={sm[-1]}", f"-DCUDA={cuda}"]
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([compiler, *macros, *options, str(HERE / "driver.c"), "-ldl"], check=True)
    path = os.pathsep.join((str(ROOT), str(installed)))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.engine.on_plugins.fake_tensorrt", release, "compile", str(package)]
    done = subprocess.run(
        [*command, "--target", "this", *arguments, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["engines"]


def test_an_engine_with_plugins_is_listed_with_the_digests_of_their_sources(sequence: Package) -> None:
    (engine,) = compiled(sequence.path)
    assert engine["id"] == "fp16-sm110-trt10.13"
    assert engine["plugins"] == ["edgekit::layer_norm_residual", "edgekit::lstm"]
    assert engine["warnings"] == []
    variant = Package.open(sequence.path).variant(engine["id"])
    assert variant.plugins == ("edgekit::layer_norm_residual", "edgekit::lstm")
    assert variant.settings["plugins"] == {
        f"edgekit::{name}": operator(name).digest() for name in ("layer_norm_residual", "lstm")
    }
    built = json.loads((sequence.path / variant.file).read_bytes())
    assert built["ahead_of_time"]
    assert "edgekit::lstm" in built["nodes"]
    assert "LSTM" not in built["nodes"]
    (again,) = compiled(sequence.path)
    assert again["reused"] == "package"
    (plain,) = compiled(sequence.path, "--no-plugins")
    assert (plain["id"], plain["plugins"]) == ("fp16-sm110-trt10.13-noplugins", [])
    stored = Package.open(sequence.path).variant(plain["id"])
    assert "LSTM" in json.loads((sequence.path / stored.file).read_bytes())["nodes"]
    assert len(Package.open(sequence.path).manifest.variants) == 4, "with and without, side by side"


def test_before_10_9_the_layers_stay(sequence: Package) -> None:
    (engine,) = compiled(sequence.path, release="10.3", sm="87")
    assert (engine["id"], engine["plugins"], engine["warnings"]) == ("fp16-sm87-trt10.3", [], [])
    variant = Package.open(sequence.path).variant(engine["id"])
    built = json.loads((sequence.path / variant.file).read_bytes())
    assert "LSTM" in built["nodes"]
    assert not built["ahead_of_time"]


def test_a_driver_that_cannot_read_the_kernels_leaves_the_layers_with_a_warning(sequence: Package) -> None:
    (engine,) = compiled(sequence.path, cuda=12020)
    assert engine["plugins"] == []
    (warning,) = engine["warnings"]
    assert warning.startswith("no layer becomes a plugin: The driver is for CUDA 12.2 and does not read")
    assert "pip install" in warning


def test_an_operator_of_another_package_becomes_a_plugin(tmp_path: Path) -> None:
    follow(tmp_path / "site")
    nodes = [make("Mul", ["x", "scale"], ["m"]), make("Relu", ["m"], ["y"], name="relu")]
    model = model_of(nodes, {"scale": random(16)}, {"x": ("batch", 4, 16)}, ["y"], opset=18)
    package = package_of(tmp_path / "scaled.edge", model, {"x": random(2, 4, 16)})
    (engine,) = compiled(package.path, "--variant", "fp32", installed=tmp_path / "site")
    assert engine["plugins"] == ["edgekit::scaled_relu"]
    built = json.loads((package.path / engine["file"]).read_bytes())
    assert built["nodes"] == ["edgekit::scaled_relu"]


@pytest.mark.gpu
def test_an_engine_with_plugins_computes_what_the_model_does(sequence: Package) -> None:
    if not available("tensorrt"):
        pytest.skip("needs TensorRT 10.9 or later")
    from edgekit.runtime.trt import TrtSession

    package, (engine,) = compile_package(sequence, ["this"])
    if not engine.plugins:
        pytest.skip(f"needs TensorRT 10.9 or later: {engine.module}, {engine.warnings}")
    x = np.random.default_rng(1).standard_normal((3, 6, 16)).astype(np.float32)
    with TrtSession((package.path / engine.file).read_bytes(), kind="tensorrt", graphs=False, slots=1) as session:
        got = session.run({"x": x})["y"]
    assert_close([got], outputs(lstm_net(opset=18), {"x": x}), relative=1e-2)


def test_a_broken_package_of_operators_leaves_the_layers_with_a_warning(sequence: Package, tmp_path: Path) -> None:
    follow(tmp_path / "site")
    (tmp_path / "site" / "mypackage" / "operators.py").write_text("raise RuntimeError('half installed')\n")
    (engine,) = compiled(sequence.path, installed=tmp_path / "site")
    assert engine["plugins"] == []
    (warning,) = engine["warnings"]
    assert "no layer becomes a plugin: Plugin 'mypackage.operators:scaled_relu'" in warning
    assert "half installed" in warning


def test_nvidias_parser_takes_the_nodes_for_the_registered_plugins(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    if not available("tensorrt_bindings"):  # found, not imported: it needs TensorRT itself
        pytest.skip("needs NVIDIA's bindings: pip install tensorrt-cu13-bindings")
    model = saved(half_model(lstm_net()), tmp_path / "lstm.onnx")
    command = [sys.executable, "-m", "tests.engine.on_plugins.parse", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["quick"]
    assert set(found["digests"]) == {"edgekit::layer_norm_residual", "edgekit::lstm"}
    said = "\n".join(found["said"])
    assert "Found registered plugin: lstm. Importing this node as a plugin." in said
    assert "Searching for plugin: lstm, plugin_version: 1, plugin_namespace: edgekit" in said
