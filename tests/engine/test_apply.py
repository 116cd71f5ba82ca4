from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.engine.apply import compile_package, stored_layers
from edgekit.engine.build import Step
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import parse_shapes
from edgekit.engine.request import check_target, module_for, resolve
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import BackendError, IntegrityError, MissingDependencyError, UsageError
from edgekit.gpu import Gpu, this_gpu
from edgekit.inspect import inspect_package
from edgekit.package import Package
from edgekit.quantize.fp16 import BF16, half_model, raised_for
from edgekit.runtime.select import choose, runnable
from edgekit.targets import target_of
from tests.engine.conftest import add_variant
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of


def test_engines_for_several_targets_in_one_go(rtx: TrtModule, net: Package) -> None:
    package, made = compile_package(net, ["rtx-4090", "sm_75", "rtx-3060"])
    tag = rtx.tag
    assert [c.id for c in made] == [f"fp16-sm89-{tag}", f"fp16-sm75-{tag}", f"fp16-sm86-{tag}"]
    variant = package.variant(f"fp16-sm86-{tag}")
    assert (variant.format, variant.precision, variant.target) == ("tensorrt-rtx", "fp16", f"sm86-{tag}")
    assert variant.file == f"engines/sm86-{tag}-fp16.engine"
    assert package.file(variant.file).stat().st_size == variant.bytes
    settings = variant.settings
    assert settings["version"] == rtx.version
    assert settings["source"] == "fp16"
    assert settings["source_sha256"] == net.variant("fp16").sha256
    assert settings["profiles"][0]["x"]["max"] == [32, 3, 12, 12]
    assert settings["inputs"] == ["x: float32[batch, 3, 12, 12]"]
    assert settings["build_s"] > 0
    assert Package.open(package.path).manifest == package.manifest


def test_the_second_compile_reuses_the_package_and_a_fresh_one_the_cache(rtx: TrtModule, net: Package) -> None:
    copy = shutil.copytree(net.path, net.path.with_name("copy.edge"))
    package, first = compile_package(net, ["sm_86"])
    again, second = compile_package(package, ["sm_86"])
    assert [c.reused for c in (*first, *second)] == ["", "package"]
    assert again.manifest.digest == package.manifest.digest
    other, third = compile_package(Package.open(copy), ["sm_86"])
    assert third[0].reused == "cache"
    assert other.variant(third[0].id).sha256 == package.variant(first[0].id).sha256
    assert third[0].summary == first[0].summary
    _, fourth = compile_package(package, ["sm_86"], use_cache=False)
    assert fourth[0].reused == ""


@pytest.mark.parametrize("change", ["options", "profiles", "model"])
def test_what_changes_the_engine_builds_it_anew(rtx: TrtModule, net: Package, change: str) -> None:
    package, _ = compile_package(net, ["sm_86"])
    options, profiles = BuildOptions(), []
    if change == "options":
        options = BuildOptions(level=1)
    elif change == "profiles":
        profiles = [parse_shapes("x:1x3x12x12..2x3x12x12")]
    else:
        package = add_variant(package, "fp16", half_model(conv_net(weight_scale=0.3)))
    package, made = compile_package(package, ["sm_86"], options=options, profiles=profiles)
    assert made[0].reused == ""
    assert package.variant(made[0].id).settings["options"] == ({"level": 1} if change == "options" else {})


def test_options_that_make_another_engine_make_another_variant(rtx: TrtModule, net: Package) -> None:
    package, first = compile_package(net, ["sm_86"])
    package, second = compile_package(package, ["sm_86"], options=BuildOptions(sparsity=True))
    assert second[0].id == f"{first[0].id}-sparse"
    assert {first[0].id, second[0].id} <= {v.id for v in package.manifest.variants}


def test_a_changed_engine_in_the_package_is_refused(rtx: TrtModule, net: Package) -> None:
    package, made = compile_package(net, ["sm_86"])
    path = package.path / made[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=made[0].file):
        compile_package(Package.open(package.path), ["sm_86"])


def test_nothing_is_written_unless_all_can_be_built(rtx: TrtModule, net: Package) -> None:
    before = sorted(p.name for p in net.path.parent.iterdir())
    with pytest.raises(BackendError, match="no FP32 matrix products"):
        compile_package(net, ["sm_86", "sm_75"], variants=["fp32"])
    assert Package.open(net.path).manifest == net.manifest
    after = sorted(p.name for p in net.path.parent.iterdir())
    assert set(after) - set(before) <= {"cache"}
    assert not (net.path / "engines").exists()


def test_a_cancelled_build_leaves_the_package_as_it_was(rtx: TrtModule, net: Package) -> None:
    def stop(_engine: str, _step: Step) -> None:
        import _thread
        import threading

        _thread.interrupt_main()
        threading.Event().wait(0.3)

    with pytest.raises(KeyboardInterrupt):
        compile_package(net, ["sm_86"], progress=stop)
    assert Package.open(net.path).manifest == net.manifest
    assert not list(net.path.parent.glob(".*staging*"))


def test_the_layers_are_kept_and_told(rtx: TrtModule, net: Package) -> None:
    package, made = compile_package(net, ["sm_86"])
    found = stored_layers(package, package.variant(made[0].id))
    assert found is not None
    assert found.layers
    told = inspect_package(package, variant=made[0].id)
    assert told.graph is None
    assert told.engine is not None
    assert told.engine.summary.layers > 0
    assert told.strangers == ()
    quiet, _ = compile_package(package, ["sm_86"], options=BuildOptions(verbosity="none"))
    assert inspect_package(quiet, variant=made[0].id).engine is None


def test_the_runtime_leaves_engines_alone(rtx: TrtModule, net: Package) -> None:
    package, made = compile_package(net, ["sm_86"])
    assert made[0].id not in {v.id for v in runnable(package)}
    assert choose(package).variant.format == "onnx"


def test_the_demo_model_for_every_gpu(rtx: TrtModule, digits: Package) -> None:
    package, made = compile_package(digits, ["sm_80", "sm_86", "sm_89", "sm_120"])
    assert [c.source for c in made] == ["fp16", "int8-trt"] * 4
    for fp16, int8 in zip(made[::2], made[1::2]):
        assert fp16.summary is not None
        assert set(fp16.summary.products) == {"fp16"}
        assert int8.summary is not None
        assert int8.summary.products["int8"] >= 8
        assert int8.summary.mismatches == ()
        assert package.variant(int8.id).precision == "int8"


def test_turing_runs_int8_in_half_precision_and_the_summary_says_so(rtx: TrtModule, digits: Package) -> None:
    _, made = compile_package(digits, ["sm_75"])
    half, summary = made[0].summary, made[1].summary
    assert half is not None
    assert (set(half.products), half.mismatches) == ({"fp16"}, ())
    assert summary is not None
    assert set(summary.products) == {"fp16"}
    assert summary.mismatches
    assert {(m.intended, m.actual) for m in summary.mismatches} == {("int8", "fp16")}


def test_without_a_variant_to_compile_the_next_command_is_named(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(4)})
    with pytest.raises(UsageError, match="edgekit quantize net.edge --precision fp16"):
        compile_package(package, ["sm_86"])


@pytest.mark.parametrize(
    ("variant", "message"),
    [("fp8", "has no variant 'fp8'"), ("old", "is an engine already"), ("int8", "takes 'int8-trt'")],
)
def test_variants_that_cannot_be_compiled(net: Package, variant: str, message: str) -> None:
    with net.edit() as writer:
        writer.path("old.engine").write_bytes(b"x")
        fields = {"precision": "fp16", "format": "tensorrt", "target": "sm87-trt10.3"}
        writer.put(writer.variant_of("old.engine", id="old", **fields))
        writer.path("int8.onnx").write_bytes(b"x")
        fields = {"precision": "int8", "format": "onnx", "target": "any", "settings": {"form": "cpu"}}
        writer.put(writer.variant_of("int8.onnx", id="int8", **fields))
        package = writer.commit()
    with pytest.raises(UsageError, match=message):
        compile_package(package, ["sm_86"], variants=[variant])


def test_this_is_the_gpu_of_the_machine() -> None:
    assert resolve("this", Gpu("NVIDIA H200", 90)).name == "h200"
    assert resolve("THIS", Gpu("Orin", 87, "NVIDIA Jetson Orin Nano")).name == "sm_87"
    assert resolve("orin-nano", None).name == "orin-nano"
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        resolve("this", None)


def test_which_tensorrt_compiles_for_what(rtx: TrtModule) -> None:
    assert module_for(target_of("rtx-4090"), None, None).kind == "tensorrt-rtx"
    assert module_for(target_of("l4"), None, Gpu("NVIDIA H200", 90)).kind == "tensorrt-rtx"
    with pytest.raises(UsageError, match=r"orin-nano \(sm_87\) is built on such a device.*--plan\.$"):
        module_for(target_of("orin-nano"), None, None)
    with pytest.raises(UsageError, match="does not compile for h200"):
        module_for(target_of("h200"), "tensorrt-rtx", None)
    with pytest.raises(UsageError, match="With --module tensorrt-rtx it can be built here"):
        module_for(target_of("l4"), "tensorrt", None)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("orin-nano", BuildOptions(dla=0), "no deep-learning accelerator 0"),
        ("orin-nx", BuildOptions(dla=2), r"accelerator 2 \(it has 2\)"),
        ("thor-t5000", BuildOptions(dla=0), "no deep-learning accelerator"),
        ("rtx-4090", BuildOptions(dla=0), "no deep-learning accelerator"),
        ("t4", BuildOptions(hardware="ampere+"), "is older"),
        ("agx-orin", BuildOptions(hardware="ampere+"), "is a Jetson chip"),
        ("agx-orin", BuildOptions(dla=1), None),
        ("sm_87", BuildOptions(dla=0), None),
        ("l4", BuildOptions(hardware="ampere+"), None),
    ],
)
def test_what_the_hardware_does_not_have(target: str, options: BuildOptions, message: str | None) -> None:
    if message is None:
        check_target(target_of(target), options)
        return
    with pytest.raises(UsageError, match=message):
        check_target(target_of(target), options)


def test_a_builder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"edgekit\[trt\]"):
        module_for(target_of("h200"), "tensorrt", Gpu("NVIDIA H200", 90))


def test_other_free_dimensions_take_the_samples_size(rtx: TrtModule, tmp_path: Path) -> None:
    from onnx import helper

    from edgekit.quantize.fp16 import half_model
    from tests.quantize.nets import model_of, random

    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = model_of(nodes, {"w": random(32, 16)}, {"x": ("batch", "time", 32)}, ["y"])
    rows = np.zeros((4, 7, 32), np.float32)
    package = add_variant(package_of(tmp_path / "seq.edge", model, {"x": rows}), "fp16", half_model(model))
    package, made = compile_package(package, ["sm_86"])
    assert package.variant(made[0].id).settings["profiles"][0]["x"]["opt"] == [8, 7, 32]


@pytest.mark.parametrize("option", ["refit", "strip"])
def test_engines_whose_weights_change_need_a_gpu_to_be_built(rtx: TrtModule, net: Package, option: str) -> None:
    if this_gpu() is not None:
        pytest.skip("this machine has a GPU, so refittable engines can be built")
    before = net.manifest
    with pytest.raises(UsageError, match="needs an NVIDIA GPU and its driver for --refit and --strip"):
        compile_package(net, ["sm_86"], options=BuildOptions(**{option: True}))  # type: ignore[arg-type]
    assert Package.open(net.path).manifest == before


def test_bfloat16_is_compiled_where_the_chip_has_it(rtx: TrtModule, net: Package) -> None:
    net = add_variant(net, "bf16", half_model(raised_for(conv_net(), BF16), kind=BF16))
    said: list[str] = []
    _, made = compile_package(net, ["sm_75", "sm_86"], note=said.append)
    assert [c.id.partition("-rtx")[0] for c in made] == ["fp16-sm75", "fp16-sm86", "bf16-sm86"]
    assert said == ["bf16 is left out for sm_75: Turing has no bfloat16"]
    with pytest.raises(UsageError, match=r"Turing has no bfloat16 \(sm_75\)\. Compile the FP16 variant"):
        compile_package(net, ["sm_75"], variants=["bf16"])
