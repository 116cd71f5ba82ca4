from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engine.build import Step, build_engine
from edgekit.engine.inspect import EngineLayers, intended_precisions, summary_of
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import Range
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import BackendError, ModelError, UnsupportedOperatorError, UsageError
from edgekit.quantize.fp16 import half_model
from edgekit.quantize.prepare import prepared
from tests.data import ROOT
from tests.engine.conftest import saved
from tests.quantize.nets import conv_net, model_of, random

FREE = BuildOptions(profiles=({"x": Range(min=(1, 3, 12, 12), opt=(4, 3, 12, 12), max=(8, 3, 12, 12))},))


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 120])
def test_a_half_precision_net_compiles_for_every_gpu(rtx: TrtModule, tmp_path: Path, sm: int) -> None:
    model = half_model(prepared(conv_net()))
    built = build_engine(saved(model, tmp_path / "net.onnx"), module=rtx, sm=sm, options=FREE)
    assert len(built.data) > 10_000
    assert built.build_s > 0
    summary = summary_of(EngineLayers(layers=built.layers, intended=intended_precisions(model)))
    assert summary.products == {"fp16": 4}
    assert summary.mismatches == ()


def test_turing_has_no_fp32_products_and_the_message_says_what_has(rtx: TrtModule, tmp_path: Path) -> None:
    path = saved(conv_net(), tmp_path / "net.onnx")
    with pytest.raises(BackendError, match="'fp32' for sm_75: there it has no FP32 matrix products. Compile the FP16"):
        build_engine(path, module=rtx, sm=75, options=FREE, name="fp32")
    assert build_engine(path, module=rtx, sm=86, options=FREE).data


def test_several_profiles_are_in_one_engine(rtx: TrtModule, tmp_path: Path) -> None:
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    one = {"x": Range(min=(1, 3, 12, 12), opt=(1, 3, 12, 12), max=(1, 3, 12, 12))}
    both = BuildOptions(profiles=(one, *FREE.profiles))
    assert build_engine(path, module=rtx, sm=86, options=both).data


def test_progress_tells_phase_time_and_memory(rtx: TrtModule, tmp_path: Path) -> None:
    steps: list[Step] = []
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    build_engine(path, module=rtx, sm=86, options=FREE, on_step=steps.append)
    assert len(steps) > 5
    assert {s.phase for s in steps} > {"Building engine"}
    assert all(1 <= s.done <= s.total for s in steps if s.total)
    times = [s.elapsed_s for s in steps]
    assert times == sorted(times)
    assert steps[-1].peak_bytes > 10_000_000


def test_an_interrupt_ends_the_build(rtx: TrtModule, tmp_path: Path) -> None:
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    sent, after = threading.Event(), []

    def interrupt(step: Step) -> None:
        if sent.is_set():
            after.append(step)
        else:
            _thread.interrupt_main()
        sent.set()
        threading.Event().wait(0.3)  # the main thread is interrupted meanwhile

    with pytest.raises(KeyboardInterrupt):
        build_engine(path, module=rtx, sm=86, options=FREE, on_step=interrupt)
    assert after == []  # cancelled at the first step
    for thread in threading.enumerate():
        if thread.name == "engine build":
            thread.join(5)  # it has ended but for a few instructions
            assert not thread.is_alive()


def test_an_operator_that_no_parser_has_is_named_with_its_module(rtx: TrtModule, tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="node_det")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'head.volume', 'det']"
    model = model_of([node], {}, {"x": (2, 3, 3)}, ["y"])
    with pytest.raises(UnsupportedOperatorError) as caught:
        build_engine(saved(model, tmp_path / "det.onnx"), module=rtx, sm=86, options=BuildOptions())
    assert "Det (node 'node_det', module 'head.volume')" in str(caught.value)
    assert "--plan" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_asymmetric_quantization_is_a_sentence(rtx: TrtModule, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dequantize"),
    ]
    model = model_of(nodes, {"s": np.float32(0.1), "z": np.int8(3)}, {"x": (1, 16)}, ["y"])
    with pytest.raises((UnsupportedOperatorError, BackendError)) as caught:
        build_engine(saved(model, tmp_path / "q.onnx"), module=rtx, sm=86, options=BuildOptions())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("TensorRT-RTX")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12\x04"])
def test_a_file_that_is_no_model(rtx: TrtModule, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"'bad\.onnx'"):
        build_engine(path, module=rtx, sm=86, options=BuildOptions())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workspace_mb": 64}, None, ""),
        ({"hardware": "same"}, UsageError, "has no --hardware same"),
        ({"dla": 0}, UsageError, "has no --dla"),
        ({"level": 0}, None, ""),
        ({"sparsity": True}, None, ""),
        ({"verbosity": "none"}, None, ""),
    ],
)
def test_options(
    rtx: TrtModule, tmp_path: Path, options: dict[str, object], error: type[Exception] | None, message: str
) -> None:
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    asked = BuildOptions(profiles=FREE.profiles, **options)  # type: ignore[arg-type]
    if error is None:
        built = build_engine(path, module=rtx, sm=86, options=asked)
        assert bool(built.layers) == (options.get("verbosity") != "none")
        return
    with pytest.raises(error, match=message):
        build_engine(path, module=rtx, sm=86, options=asked)


def test_a_workspace_that_is_too_small_says_so(rtx: TrtModule, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    model = model_of(nodes, {"w": random(512, 512)}, {"x": ("batch", 256, 512)}, ["y"])
    shapes = {"x": Range(min=(1, 256, 512), opt=(64, 256, 512), max=(256, 256, 512))}
    path = saved(half_model(model), tmp_path / "net.onnx")
    with pytest.raises(BackendError, match="Raise --workspace"):
        build_engine(path, module=rtx, sm=86, options=BuildOptions(profiles=(shapes,), workspace_mb=1))


def test_an_unknown_capability_lists_those_that_are(rtx: TrtModule, tmp_path: Path) -> None:
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="does not compile for sm_90; it does for sm_75"):
        build_engine(path, module=rtx, sm=90, options=FREE)


def test_what_needs_a_gpu_says_so(rtx: TrtModule, tmp_path: Path) -> None:
    from edgekit.gpu import this_gpu

    if this_gpu() is not None:
        pytest.skip("this machine has a GPU, so refittable engines can be built")
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    asked = BuildOptions(profiles=FREE.profiles, refit=True)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        build_engine(path, module=rtx, sm=86, options=asked)


def test_a_standard_body_stands_in_for_a_custom_operator(rtx: TrtModule, tmp_path: Path) -> None:
    """A node of another domain compiles when the model brings its body as a function."""
    body = helper.make_function(
        "acme", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [helper.make_node("Double", ["x"], ["d"], domain="acme"), helper.make_node("MatMul", ["d", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4, 16])],
        [numpy_helper.from_array(random(16, 16).astype(np.float16), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    assert build_engine(saved(model, tmp_path / "f.onnx"), module=rtx, sm=86, options=BuildOptions()).data


def test_a_collection_of_garbage_while_the_compiler_logs_does_not_hang(rtx: TrtModule, tmp_path: Path) -> None:
    """Builders in reference cycles, collected at every allocation: TensorRT's own lock must not be waited for."""
    path = saved(half_model(conv_net()), tmp_path / "net.onnx")
    script = f"""
import gc, sys
from pathlib import Path
from edgekit.engine.build import build_engine
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import parse_shapes
from edgekit.engine.trt_module import load
module = load("tensorrt-rtx")
gc.disable()
for _ in range(8):
    cycle = [module.trt.Builder(module.logger(lambda *_: None, verbose=True))]
    cycle.append(cycle)
    del cycle
gc.set_threshold(1)
gc.enable()
options = BuildOptions(profiles=(parse_shapes("x:1x3x12x12..4x3x12x12"),))
build_engine(Path({str(path)!r}), module=module, sm=86, options=options)
print("built", gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "built True", done.stderr
