from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.quantize.fp16 import half_model
from edgekit.runtime.ort import OrtSession
from plugins_trt.fuse import Graph, fused
from plugins_trt.nodes import with_plugins
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close

helper = onnx.helper
FEATURES, HIDDEN = 5, 12


def layer(
    *,
    way: str = "forward",
    bias: bool = True,
    states: bool = True,
    outputs: tuple[str, ...] = ("y", "h", "c"),
    batch: int | str = "batch",
    hidden: int = HIDDEN,
    lengths: bool = False,
    constant: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one LSTM and a Relu before it."""
    directions = 2 if way == "bidirectional" else 1
    rng = np.random.default_rng(0)
    weights = {"w": (directions, 4 * hidden, FEATURES), "r": (directions, 4 * hidden, hidden)}
    if bias:
        weights["b"] = (directions, 8 * hidden)
    constants = [
        onnx.numpy_helper.from_array((rng.standard_normal(s) / hidden**0.5).astype(np.float32), n)
        for n, s in weights.items()
    ]
    state = (directions, batch, hidden)
    value = helper.make_tensor_value_info
    inputs = [value("x", 1, ("steps", batch, FEATURES))]
    if states:
        inputs += [value("h0", 1, state), value("c0", 1, state)]
    if lengths:
        inputs.append(value("lengths", 6, (batch,)))
    if not constant:
        inputs.append(value("r", 1, weights["r"]))
        constants = [c for c in constants if c.name != "r"]
    names = ["a", "w", "r", "b" if bias else "", "lengths" if lengths else "", *["h0", "c0"] * states]
    lstm = helper.make_node("LSTM", names, list(outputs), name="rnn", hidden_size=hidden, direction=way, **attributes)
    shapes = {"y": ("steps", directions, batch, hidden), "h": state, "c": state}
    results = [value(name, 1, shapes[name]) for name in outputs if name]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["a"]), lstm], "g", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def assert_fused(model: onnx.ModelProto, *, found: bool = True, batch: int = 3) -> onnx.ModelProto:
    """Fuse, and compare both models on random inputs."""
    made, fusions = fused(model, operators().values())
    assert [(fusion.operator, fusion.nodes) for fusion in fusions] == [("lstm", ("rnn",))] * found
    onnx.checker.check_model(made, full_check=True)
    rng = np.random.default_rng(1)
    feed = {}
    for given in model.graph.input:
        sizes = [d.dim_value or {"steps": 7, "batch": batch}[d.dim_param] for d in given.type.tensor_type.shape.dim]
        feed[given.name] = rng.standard_normal(sizes).astype(np.float32)
    if "lengths" in feed:
        feed["lengths"] = np.full(batch, 7, np.int32)
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.SerializeToString()) as after:
        assert_close(list(after.run(feed).values()), list(before.run(feed).values()), relative=1e-5)
    return made


@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
def test_an_lstm_becomes_a_product_and_the_operator(way: str, states: bool) -> None:
    made = assert_fused(layer(way=way, states=states))
    kinds = [node.op_type for node in made.graph.node]
    assert "LSTM" not in kinds
    assert kinds.count("lstm") == kinds.count("MatMul") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"states": False, "batch": 3},
        {"outputs": ("y",)},
        {"outputs": ("", "h")},
        {"outputs": ("", "", "c")},
        {"activations": ["Sigmoid", "Tanh", "Tanh"], "input_forget": 0},
    ],
)
def test_what_an_lstm_may_leave_out(options: dict[str, Any]) -> None:
    assert_fused(layer(**options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lengths": True}, "lengths of their own"),
        ({"constant": False}, "not constants"),
        ({"clip": 0.5}, "clipping"),
        ({"input_forget": 1}, "coupled gates"),
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "other activations"),
        ({"hidden": 130}, "130 hidden units in float32, and the kernel takes sizes up to 128"),
    ],
)
def test_what_the_kernel_does_not_compute_stays(options: dict[str, Any], reason: str) -> None:
    model = layer(**options)
    made = assert_fused(model, found=False)
    assert [node.op_type for node in made.graph.node] == ["Relu", "LSTM"]
    graph = Graph(model)
    graph.fuse(operators().values())
    assert [left.node for left in graph.left] == ["rnn"]
    assert reason in graph.left[0].reason


def test_in_half_precision_larger_layers_fit_and_become_plugins() -> None:
    made, fusions = fused(half_model(layer(hidden=130)), operators().values())
    assert len(fusions) == 1
    plugged = with_plugins(made, operators(), sm=87)
    assert [use.operator for use in plugged.used] == ["lstm"]
    assert "float16" in plugged.used[0].inputs


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_lstm_of_a_pytorch_export_with_its_weights_in_slices() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(40, 64, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.lstm(x)[0])

    encoder = Encoder().eval()
    free = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")},)
    example = (torch.randn(2, 5, 40),)
    exported = torch.onnx.export(encoder, example, dynamo=True, verbose=False, dynamic_shapes=free).model_proto
    made, fusions = fused(exported, operators().values())
    assert [fusion.operator for fusion in fusions] == ["lstm", "lstm"]
    assert len(made.graph.node) < len(exported.graph.node)
    x = torch.randn(3, 7, 40)
    with OrtSession(made.SerializeToString()) as session:
        (y,) = session.run({session.inputs[0].name: x.numpy()}).values()
    assert_close([y], [encoder(x).detach().numpy()], relative=1e-5)
    half, _ = fused(half_model(exported), operators().values())
    assert len(with_plugins(half, operators(), sm=110).used) == 2
