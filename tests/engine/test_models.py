"""Every architecture that edgekit promises, compiled by the real compiler for every GPU that it compiles for here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.engine.apply import compile_package
from edgekit.engine.build import build_engine
from edgekit.engine.inspect import EngineLayers, EngineSummary, intended_precisions, summary_of
from edgekit.engine.options import BuildOptions
from edgekit.engine.plan import plan_package
from edgekit.engine.profiles import Profile, parse_shapes, profiles_for
from edgekit.engine.trt_module import TrtModule
from edgekit.export.onnx_import import onnx_from_file
from edgekit.graphs import model_specs
from edgekit.package import Package
from edgekit.quantize.fp16 import BF16, half_model, raised_for
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Range
from edgekit.quantize.trt import trt_int8
from edgekit.targets import target_of
from tests.data import data_path
from tests.engine.conftest import add_variant, saved
from tests.quantize.nets import model_of, random
from tests.quantize.packages import package_of

GPUS = (75, 80, 86, 89, 120)


def attention() -> onnx.ModelProto:
    """One encoder layer of a transformer: (batch, 16, 32), 4 heads."""
    node = helper.make_node
    weights = {n: random(32, 32, scale=0.2, seed=i) for i, n in enumerate(("q", "k", "v", "o"))}
    weights |= {"up": random(32, 64, scale=0.2, seed=5), "down": random(64, 32, scale=0.2, seed=6)}
    weights |= {"g": np.ones(32, np.float32), "b": np.zeros(32, np.float32), "scale": np.float32(8**-0.5)}
    weights |= {"heads": np.array([0, 16, 4, 8], np.int64), "flat": np.array([0, 16, 32], np.int64)}
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", name], [f"{name}1"], name=f"{name}_proj"),
            node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=perm),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["s1"], name="scores"),
        node("Mul", ["s1", "scale"], ["s2"]),
        node("Softmax", ["s2"], ["s3"], axis=-1),
        node("MatMul", ["s3", "v3"], ["a1"], name="mix"),
        node("Transpose", ["a1"], ["a2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a2", "flat"], ["a3"]),
        node("MatMul", ["a3", "o"], ["a4"], name="o_proj"),
        node("Add", ["a4", "x"], ["r1"]),
        node("LayerNormalization", ["r1", "g", "b"], ["n1"], axis=-1),
        node("MatMul", ["n1", "up"], ["f1"], name="ffn_up"),
        node("Relu", ["f1"], ["f2"]),
        node("MatMul", ["f2", "down"], ["f3"], name="ffn_down"),
        node("Add", ["f3", "n1"], ["y"]),
    ]
    return model_of(nodes, weights, {"x": ("batch", 16, 32)}, ["y"])


def lstm() -> onnx.ModelProto:
    """A bidirectional LSTM of 8 steps: (8, batch, 16)."""
    weights = {"w": random(2, 64, 16, scale=0.3), "r": random(2, 64, 16, scale=0.3), "b": random(2, 128, scale=0.1)}
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], name="lstm", hidden_size=16, direction="bidirectional")
    return model_of([node], weights, {"x": (8, "batch", 16)}, ["y"])


def generator() -> onnx.ModelProto:
    """A GAN's generator: a vector of 16 to a picture of 3x16x16 through transposed convolutions."""
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "shape"], ["v"]),
        node("ConvTranspose", ["v", "w1"], ["c1"], name="up1", strides=[4, 4]),
        node("Relu", ["c1"], ["a1"]),
        node("ConvTranspose", ["a1", "w2"], ["c2"], name="up2", strides=[2, 2]),
        node("LeakyRelu", ["c2"], ["a2"]),
        node("ConvTranspose", ["a2", "w3"], ["c3"], name="up3", strides=[2, 2]),
        node("Tanh", ["c3"], ["y"]),
    ]
    weights = {"w1": random(16, 16, 4, 4, scale=0.2), "w2": random(16, 8, 2, 2), "w3": random(8, 3, 2, 2)}
    weights["shape"] = np.array([0, 16, 1, 1], np.int64)
    return model_of(nodes, weights, {"x": ("batch", 16)}, ["y"])


def imported(name: str) -> Callable[[], onnx.ModelProto]:
    """The real model in that file of the test data."""
    return lambda: onnx_from_file(data_path(name), opset=17)[0]


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "squeezenet": imported("clf_squeezenet11/squeezenet11_fp32.onnx"),
    "ultraface": imported("det_ultraface/version-RFB-320.onnx"),
    "candy": imported("style_fns/candy.onnx"),
    "silero": imported("audio_silero_vad/silero_vad_16k_op15.onnx"),
    "transformer": attention,
    "lstm": lstm,
    "generator": generator,
}
SHAPES = {"transformer": "x:1x16x32..8x16x32", "lstm": "x:8x1x16..8x8x16", "generator": "x:1x16..8x16"}


@lru_cache(maxsize=2)
def ready(name: str) -> onnx.ModelProto:
    return prepared(MODELS[name]())


class Everywhere(dict[str, Range]):
    """A range for every tensor: what the compiler makes of a graph does not depend on the numbers."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, _name: str) -> Range:
        return Range(-4.0, 4.0)


def profiles(name: str, model: onnx.ModelProto) -> tuple[Profile, ...]:
    asked = [parse_shapes(SHAPES[name])] if name in SHAPES else []
    return profiles_for(model_specs(model)[0], asked, {})


def built(rtx: TrtModule, name: str, model: onnx.ModelProto, sm: int, folder: Path) -> EngineSummary:
    options = BuildOptions(profiles=profiles(name, model))
    done = build_engine(saved(model, folder / "net.onnx"), module=rtx, sm=sm, options=options, name=name)
    assert len(done.data) > 10_000
    assert done.warnings == ()
    return summary_of(EngineLayers(layers=done.layers, intended=intended_precisions(model)))


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("name", [n for n in MODELS if n != "silero"])
def test_half_precision_for_every_gpu(rtx: TrtModule, tmp_path: Path, name: str, sm: int) -> None:
    model = half_model(ready(name))
    summary = built(rtx, name, model, sm, tmp_path)
    assert summary.mismatches == ()
    assert summary.precisions.get("fp16", 0) > 0
    if name != "lstm":
        assert set(summary.products) == {"fp16"}


@pytest.mark.parametrize("sm", [80, 86, 89, 120])
@pytest.mark.parametrize("name", ["squeezenet", "ultraface", "candy", "transformer"])
def test_int8_where_the_gpu_has_it(rtx: TrtModule, tmp_path: Path, name: str, sm: int) -> None:
    model = half_model(trt_int8(ready(name), Everywhere()))
    assert "int8" in intended_precisions(model).values()
    summary = built(rtx, name, model, sm, tmp_path)
    asked, got = summary.intended["int8"], summary.products.get("int8", 0)
    assert got >= 0.75 * asked
    assert all(m.intended == "int8" for m in summary.mismatches)
    assert len(summary.mismatches) == asked - got


def test_transposed_convolutions_in_int8_run_in_half_precision_and_are_named(rtx: TrtModule, tmp_path: Path) -> None:
    summary = built(rtx, "generator", half_model(trt_int8(ready("generator"), Everywhere())), 89, tmp_path)
    assert [(m.node, m.intended, m.actual) for m in summary.mismatches] == [("up1", "int8", "fp16")]


def test_the_real_speech_model_for_every_gpu(rtx: TrtModule, tmp_path: Path) -> None:
    """silero asks for ranks and lengths in nested conditions, with half of the network in their branches."""
    model = prepared(MODELS["silero"]())
    package = package_of(tmp_path / "silero.edge", model, defaults={"sr": 16000})
    assert isinstance(package, Package)
    package = add_variant(package, "fp16", half_model(model))
    shapes = [parse_shapes("input:1x576..4x576,state:2x1x128..2x4x128")]
    package, made = compile_package(package, [f"sm_{sm}" for sm in GPUS], variants=["fp16"], profiles=shapes)
    assert [c.sm for c in made] == list(GPUS)
    for engine in made:
        assert engine.summary is not None
        assert set(engine.summary.products) == {"fp16"}


@pytest.mark.parametrize("sm", [80, 86, 89, 120])
def test_bfloat16_where_the_gpu_has_it(rtx: TrtModule, tmp_path: Path, sm: int) -> None:
    model = half_model(prepared(raised_for(attention(), BF16)), kind=BF16)
    summary = built(rtx, "transformer", model, sm, tmp_path)
    assert set(summary.products) == {"bf16"}


def regions(sampling_ratio: int) -> onnx.ModelProto:
    """A convolution, and five regions of its map by ONNX's own RoiAlign."""
    weights = {"w": random(4, 3, 3, 3), "at": np.zeros(5, np.int64)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "RoiAlign", ["map", "rois", "at"], ["y"], name="regions", output_height=3, output_width=3,
            sampling_ratio=sampling_ratio,
        ),
    ]  # fmt: skip
    return model_of(nodes, weights, {"x": (1, 3, 16, 16), "rois": (5, 4)}, ["y"], opset=20)


def test_a_function_takes_the_place_of_a_layer_that_tensorrt_rtx_lacks(rtx: TrtModule, tmp_path: Path) -> None:
    package = add_variant(package_of(tmp_path / "regions.edge", regions(2)), "fp16", half_model(regions(2)))
    (outlook,) = plan_package(package, [target_of("sm_86")], variants=["fp16"])
    assert outlook.verdict == "works", outlook.problems
    assert outlook.parsed
    assert "edgekit::roi_align stands for regions" in " ".join(outlook.notes)
    assert {o.operator: o.how for o in outlook.operators}["edgekit::roi_align"] == "function body"
    _, made = compile_package(package, ["sm_86", "sm_120"], variants=["fp16"])
    assert [c.sm for c in made] == [86, 120]


def test_a_layer_that_no_function_can_stand_for_is_named(rtx: TrtModule, tmp_path: Path) -> None:
    package = package_of(tmp_path / "regions.edge", regions(0))
    (outlook,) = plan_package(package, [target_of("sm_86")], variants=["fp32"])
    assert outlook.verdict == "breaks"
    assert "sampling_ratio above 0" in " ".join(outlook.problems)
