from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.quantize.fp16 import BF16, FP16, half_model, raised_for, rounded_model
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.mixed import float_nodes, peaks_of
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, images, mlp_block, model_of, random
from tests.quantize.test_qdq import data_of


def large_in_the_middle() -> onnx.ModelProto:
    """Values of 1e5 between two products: beyond FP16, within float32."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["big"], name="up"),
        node("Relu", ["big"], ["r"], name="act"),
        node("MatMul", ["r", "w2"], ["m"], name="down"),
        node("Add", ["m", "b"], ["y"], name="add"),
    ]
    weights = {"w1": random(8, 8, scale=3e4), "w2": random(8, 8, scale=1e-5), "b": random(8)}
    return prepared(model_of(nodes, weights, {"x": ("batch", 8)}, ["y"]))


def test_nodes_that_would_overflow_stay_float32_and_the_result_is_right() -> None:
    model, data = large_in_the_middle(), data_of(random(16, 8))
    floats = float_nodes(model, peaks_of(model, data), kind=FP16)
    assert {"up", "act", "down"} == set(floats)
    assert "'big' reaches" in floats["up"]
    reference = outputs_of(model, data)
    mixed = outputs_of(half_model(model, floats=floats), data)
    assert gap(reference, mixed, classes=False).error < 1e-5
    everywhere = outputs_of(rounded_model(model), data)
    assert not gap(reference, everywhere, classes=False).error < 1e-5


def test_sums_inside_a_norm_count() -> None:
    model, data = prepared(mlp_block()), data_of(random(8, 6, 32))
    assert float_nodes(model, peaks_of(model, data), kind=FP16) == {}
    wide = data_of(random(8, 6, 32, scale=300))
    found = float_nodes(model, peaks_of(model, wide), kind=FP16)
    assert any("squares inside LayerNormalization" in why for why in found.values())


def test_bf16_takes_convolutions_and_leaves_norms_in_float32() -> None:
    ready = raised_for(prepared(conv_net()), BF16)
    made = half_model(ready, kind=BF16)
    onnx.checker.check_model(made, full_check=True)
    assert {t.data_type for t in made.graph.initializer if t.dims} == {TensorProto.BFLOAT16}
    model, data = prepared(mlp_block()), data_of(random(8, 6, 32))
    assert any("LayerNormalization" in why for why in float_nodes(model, peaks_of(model, data), kind=BF16).values())


def test_the_simulation_of_fp16_is_what_onnx_runtime_computes() -> None:
    model, data = prepared(conv_net()), data_of(images(8))
    real, simulated = outputs_of(half_model(model), data), outputs_of(rounded_model(model), data)
    assert np.allclose(real["scores"], simulated["scores"], rtol=2e-2, atol=2e-2)
