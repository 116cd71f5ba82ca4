"""lstm against torch.nn.LSTM, which is cuDNN's, from x to y: our side has the matrix product of the input in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.plugin_cases.case import Case, Kernel, Way
from plugins_trt.lstm import GATES, Lstm
from plugins_trt.operator import ITEM_BYTES, Cost

CUDNN = "torch.nn.LSTM (cuDNN), graph"


def cases() -> list[Case]:
    """What is asked for (twice cuDNN for one sequence, not slower for 64), then both directions, one step of a stream,
    and other sizes."""
    return [
        _case(100, 1, 128, asked=2.0),
        _case(100, 64, 128, asked=1.0),
        _case(100, 8, 128, "bidirectional"),
        _case(1, 1, 128),
        _case(100, 1, 64),
        _case(100, 1, 192),
        _case(100, 1, 256),
        _case(100, 64, 256),
    ]


def _case(steps: int, batch: int, hidden: int, way: str = "forward", *, asked: float | None = None) -> Case:
    operator = Lstm()
    call = operator.example(steps, batch, hidden, "float16", way)
    label = f"batch {batch}, hidden {hidden}, {steps} step{'s' * (steps > 1)}" + ", both ways" * (
        way == "bidirectional"
    )
    return Case(
        operator, label, call,
        rivals=lambda torch, tensors: _rivals(torch, tensors, steps, batch, hidden),
        ours=lambda torch, kernel, tensors: _ours(torch, kernel, tensors, steps, batch, hidden),
        extra=input_cost(steps, batch, hidden, directions=call.inputs[1].sizes[0]),
        asked=None if asked is None else (CUDNN, asked),
    )  # fmt: skip


def input_cost(steps: int, batch: int, hidden: int, *, directions: int) -> Cost:
    """Of x weight_ih^T + bias, with as many features as hidden units: x, weights and bias read, and the gates written,
    which the kernel reads again."""
    rows, columns, item = steps * batch, directions * GATES * hidden, ITEM_BYTES["float16"]
    read = item * (rows * hidden + columns * hidden + columns)
    return Cost(read, item * rows * columns, 2 * rows * columns * hidden + rows * columns)


def _ours(torch: Any, kernel: Kernel, tensors: Sequence[Any], steps: int, batch: int, hidden: int) -> Callable[[], Any]:
    """The product and the kernel, as TensorRT runs them one after the other."""
    gates, weight_hh, h0, c0 = tensors
    options = {"device": "cuda", "dtype": gates.dtype}
    x = torch.randn(steps, batch, hidden, **options)
    weight_ih = torch.randn(gates.shape[-1], hidden, **options) / hidden**0.5
    bias = torch.randn(gates.shape[-1], **options)
    return lambda: kernel(torch.nn.functional.linear(x, weight_ih, bias), weight_hh, h0, c0)


def _rivals(torch: Any, tensors: Sequence[Any], steps: int, batch: int, hidden: int) -> Mapping[str, Way]:
    gates, _, h0, c0 = tensors
    layer = torch.nn.LSTM(hidden, hidden, bidirectional=h0.shape[0] == 2).cuda().to(gates.dtype).eval()
    layer.flatten_parameters()
    x = torch.randn(steps, batch, hidden, device="cuda", dtype=gates.dtype)
    compiled = torch.compile(layer)
    return {
        CUDNN: Way(lambda: layer(x, (h0, c0)), graph=True),
        "torch.nn.LSTM (cuDNN), eager": Way(lambda: layer(x, (h0, c0)), graph=False),
        "torch.compile of it": Way(lambda: compiled(x, (h0, c0)), graph=False),
    }
