from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import onnx
import pytest

import plugins_trt.torch as ops
from edgekit.runtime.ort import OrtSession
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.lstm_torch import lstm_module
from tests.data import ROOT

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def trained(*sizes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.LSTM(*sizes, **options).eval()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"bias": False}])
def test_the_function_is_pytorchs_lstm(options: dict[str, Any]) -> None:
    layer = trained(6, 5, **options)
    suffixes = ("", "_reverse")[: 1 + layer.bidirectional]
    states = torch.randn(2, len(suffixes), 3, 5)
    x = torch.randn(4, 3, 6)

    def stacked(name: str) -> Any:
        return torch.stack([getattr(layer, f"{name}_l0{suffix}").detach() for suffix in suffixes])

    bias = stacked("bias_ih") + stacked("bias_hh") if layer.bias else torch.zeros(len(suffixes), 20)
    way = "bidirectional" if layer.bidirectional else "forward"
    got = ops.lstm(x, stacked("weight_ih"), stacked("weight_hh"), bias, *states, direction=way)
    y, (h, c) = layer(x, tuple(states))
    torch.testing.assert_close(got, (y, h, c))


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("states", [False, True])
def test_the_module_takes_the_place_of_pytorchs(options: dict[str, Any], states: bool) -> None:
    layer = trained(6, 5, **options)
    ours = lstm_module(layer)
    x = torch.randn(4, 3, 6)
    batch = x.shape[0] if layer.batch_first else x.shape[1]
    given = (tuple(torch.randn(2, layer.num_layers * (1 + layer.bidirectional), batch, 5)),) if states else ()
    y, (h, c) = layer(x, *given)
    got, (got_h, got_c) = ours(x, *given)
    torch.testing.assert_close((got, got_h, got_c), (y, h, c))


def test_half_precision_goes_through() -> None:
    layer = trained(6, 5)
    y, _ = lstm_module(layer).half()(torch.ones(4, 1, 6).half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(torch.ones(4, 1, 6))[0], rtol=0, atol=2e-3)


class Streaming(torch.nn.Module):  # type: ignore[misc]
    """States in and out, as a voice-activity detector has them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = trained(6, 8, batch_first=True, bidirectional=True)

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        y, (h, c) = self.lstm(torch.relu(x), (h, c))
        return y, h, c


def test_a_model_exports_with_the_node_and_its_function_for_any_steps_and_batch() -> None:
    model = Streaming().eval()
    ours = Streaming().eval()
    ours.lstm = lstm_module(model.lstm)
    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    example = (torch.randn(2, 5, 6), torch.randn(2, 2, 8), torch.randn(2, 2, 8))
    exported = ops.onnx_from_torch(
        ours, example, input_names=["x", "h0", "c0"], output_names=["y", "h", "c"], verbose=False,
        dynamic_shapes=({0: batch, 1: steps}, {1: batch}, {1: batch}),
    )  # fmt: skip
    onnx.checker.check_model(exported)
    nodes = [node for node in exported.graph.node if node.domain == "edgekit"]
    assert [node.op_type for node in nodes] == ["lstm"]
    assert not {"Split", "Concat"} & {node.op_type for node in exported.graph.node}, "weights are reordered in the file"
    assert {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute} == {
        "hidden_size": 8,
        "direction": b"bidirectional",
    }
    assert [(f.domain, f.name) for f in exported.functions] == [("edgekit", "lstm")]
    given = (torch.randn(3, 11, 6), torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    with OrtSession(exported.SerializeToString()) as session:
        out = session.run({name: t.numpy() for name, t in zip(("x", "h0", "c0"), given)})
    for name, want in zip(("y", "h", "c"), model(*given)):
        torch.testing.assert_close(torch.from_numpy(out[name]), want.detach(), rtol=1e-5, atol=1e-6)


def test_the_example_of_the_guide_runs() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"^```python lstm\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_does_not_fit_is_refused() -> None:
    x, states = torch.zeros(4, 3, 6), torch.zeros(1, 3, 5)
    weights = (torch.zeros(1, 20, 6), torch.zeros(1, 20, 5), torch.zeros(1, 20))
    with pytest.raises(UnsupportedCallError, match=r"'x' has shape \[3, 6\]; it has 3 dimensions"):
        ops.lstm(x[0], *weights, states, states)
    with pytest.raises(UnsupportedCallError, match=r"'x' is \[4, 3, 5\]"):
        ops.lstm(x[..., 1:], *weights, states, states)
    with pytest.raises(UnsupportedCallError, match=r"'bias' is \[1, 19\]; it is \[1, 20\]"):
        ops.lstm(x, *weights[:2], weights[2][:, 1:], states, states)
    with pytest.raises(UnsupportedCallError, match="'h0' is"):
        ops.lstm(x, *weights, states[:, 1:], states)
    with pytest.raises(UnsupportedCallError, match="got a GRU"):
        lstm_module(torch.nn.GRU(3, 4))
    with pytest.raises(UnsupportedCallError, match="projects its output to 2 features"):
        lstm_module(torch.nn.LSTM(3, 4, proj_size=2))
