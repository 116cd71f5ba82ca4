from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.quantize.dynamic import dynamic_lstm, dynamic_matmul, recurrent
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import mlp_block, model_of, random
from tests.quantize.test_qdq import data_of


def lstm(directions: int = 1) -> onnx.ModelProto:
    """(7 steps, batch 1, 12 features) through an LSTM of 16."""
    kind = "forward" if directions == 1 else "bidirectional"
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["y", "h", "c"], hidden_size=16, direction=kind),
    ]
    weights = {
        "w": random(directions, 64, 12, scale=0.3),
        "r": random(directions, 64, 16, scale=0.3, seed=1),
        "b": random(directions, 128, scale=0.1),
    }
    return prepared(model_of(nodes, weights, {"x": ("batch", 7, 12)}, ["y", "c"]))


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_in_eight_bits_with_no_calibration(directions: int) -> None:
    model, data = lstm(directions), data_of(random(6, 7, 12))
    assert len(recurrent(model)) == 1
    made = dynamic_lstm(model)
    assert [n.op_type for n in made.graph.node][-1] == "DynamicQuantizeLSTM"
    assert made.ByteSize() < 0.5 * model.ByteSize()
    assert gap(outputs_of(model, data), outputs_of(made, data), classes=False).error < 1e-3


def test_gru_and_lstm_with_computed_weights_stay() -> None:
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=16)]
    weights = {"w": random(1, 48, 12), "r": random(1, 48, 16)}
    model = prepared(model_of(nodes, weights, {"x": (7, "batch", 12)}, ["y"]))
    assert recurrent(model) == []


def test_matrix_products_of_any_range() -> None:
    model = prepared(mlp_block())
    data = data_of(np.concatenate([random(4, 6, 32), 1000 * random(4, 6, 32)]))
    made = dynamic_matmul(model)
    assert [n.op_type for n in made.graph.node].count("DynamicQuantizeMatMul") == 2
    assert gap(outputs_of(model, data), outputs_of(made, data), classes=False).error < 1e-3
