"""Recurrent layers: one ONNX node a layer, any length, states that come and go, the numbers of PyTorch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from edgekit.errors import ModelError
from edgekit.export.cleanup import clean
from edgekit.export.torch_runner import TorchRunner, quiet
from edgekit.export.torch_to_onnx import onnx_from_program, program_from_torch
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import TensorSpec

SEQUENCE = TensorSpec("x", "float32", ("batch", "time", 6))


class Stacks(nn.Module):
    """Several recurrent stacks over one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([
            nn.RNN(6, 5, batch_first=True),
            nn.RNN(6, 5, num_layers=2, nonlinearity="relu", bidirectional=True, batch_first=True),
            nn.GRU(6, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3),
            nn.LSTM(6, 5, bidirectional=True, batch_first=True, bias=False),
            nn.LSTM(6, 5, num_layers=2, batch_first=True),
        ])  # fmt: skip
        self.over_time_first = nn.LSTM(6, 4)
        self.normed = nn.GRU(6, 3, batch_first=True)
        nn.utils.parametrizations.weight_norm(self.normed, "weight_hh_l0")

    def forward(self, x):
        outputs = [layer(x)[0] for layer in (*self.first, self.normed)]
        y, (h, c) = self.over_time_first(x.transpose(0, 1))
        return torch.cat(outputs, 2), y, h, c


class Stateful(nn.Module):
    """Two layers whose states are inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True)

    def forward(self, x, h, c):
        y, (h, c) = self.lstm(x, (h, c))
        return y, h, c


def exported(module, inputs, outputs, feed):
    torch.manual_seed(0)
    run = TorchRunner(module.eval(), inputs, model="net", outputs=outputs)
    model = onnx_from_program(program_from_torch(run, feed), run, opset=18)
    clean(model)
    return run, model


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def stacks():
    return exported(Stacks(), (SEQUENCE,), ("y", "z", "h", "c"), {"x": random(2, 5, 6)})


def test_each_layer_is_one_node(stacks):
    _, model = stacks
    kinds = Counter(n.op_type for n in model.graph.node)
    assert (kinds["RNN"], kinds["GRU"], kinds["LSTM"]) == (3, 3, 4)
    assert not {"Loop", "Scan"} & kinds.keys()
    # zero states are left out, and weights need no work at run time, but for the one that the model computes
    constants = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("RNN", "GRU", "LSTM"):
            assert not any(node.input[4:])
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            directions = 2 if attributes["direction"] == b"bidirectional" else 1
            assert len(attributes.get("activations", ())) == (directions if node.op_type == "RNN" else 0)
            assert sum(name not in constants for name in node.input[1:4] if name) <= (node.op_type == "GRU")


@pytest.mark.parametrize(("batch", "time"), [(2, 5), (1, 1), (3, 17)])
def test_any_batch_and_length_equals_pytorch(stacks, tmp_path, batch, time):
    run, model = stacks
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    feed = {"x": random(batch, time, 6, seed=time)}
    expected = run.run(feed)
    with OrtSession(tmp_path / "net.onnx") as session:
        given = session.run(feed)
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value, atol=2e-6)


def test_states_are_inputs_and_outputs(tmp_path):
    state = ((2, "batch", 5), (2, "batch", 5))
    inputs = (SEQUENCE, *(TensorSpec(n, "float32", s) for n, s in zip("hc", state)))
    feed = {"x": random(2, 4, 6), "h": random(2, 2, 5, seed=1), "c": random(2, 2, 5, seed=2)}
    run, model = exported(Stateful(), inputs, ("y", "h_next", "c_next"), feed)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    whole = {"x": random(3, 9, 6, seed=3), "h": np.zeros((2, 3, 5), "f"), "c": np.zeros((2, 3, 5), "f")}
    expected = run.run(whole)
    steps, carried = [], whole
    with OrtSession(tmp_path / "net.onnx") as session:
        for x in np.split(whole["x"], 9, axis=1):
            answer = session.run({**carried, "x": x})
            steps.append(answer["y"])
            carried = {"h": answer["h_next"], "c": answer["c_next"]}
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected["y"], atol=2e-6)
    np.testing.assert_allclose(carried["h"], expected["h_next"], atol=2e-6)


def test_a_projection_is_refused_by_name():
    run = TorchRunner(nn.LSTM(6, 5, proj_size=3).eval(), (SEQUENCE,), model="net")
    with pytest.raises(ModelError, match="projection"):
        program_from_torch(run, {"x": random(2, 5, 6)})


def test_pytorch_is_as_before_afterwards(stacks):
    module, x = nn.LSTM(6, 5).eval(), torch.ones(3, 2, 6)
    with quiet():
        program = torch.export.export(module, (x,)).run_decompositions()
    assert torch.allclose(program.module()(x)[0], module(x)[0], atol=1e-6)
