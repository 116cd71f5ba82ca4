"""PyTorch's recurrent layers as one ONNX node a layer (RNN, GRU or LSTM), for sequences of any length.

Left alone, PyTorch's exporter fixes the length of a sequence, writes out every step of an `nn.RNN`, and leaves weights
to be cut and reordered at run time. Here tracing sees shapes only, and the file has the weights in ONNX's order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgekit._lazy import require

_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""ONNX's gates as numbers of PyTorch's: r, z, n there is z, r, n here; i, f, g, o is i, o, f, c."""


@contextlib.contextmanager
def any_length() -> Iterator[None]:
    """Let `torch.export` ask recurrent layers for the shapes they give, where it would take their steps one by one."""
    torch = require("torch", why="export models")
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    tables = [(torch._decomp.decomposition_table, op, op) for op in _operators()]
    tables += [(op.py_kernels, key, op) for op in _operators()]
    before = [table.get(entry) for table, entry, _ in tables]
    try:
        for table, entry, op in tables:
            table[entry] = _shapes
            op._dispatch_cache.clear()  # it remembers the kernel before
        yield
    finally:
        for (table, entry, op), kernel in zip(tables, before):
            if kernel is None:
                table.pop(entry, None)
            else:
                table[entry] = kernel
            op._dispatch_cache.clear()


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`: the layers as standard nodes."""
    return {op: _translation(*described) for op, described in _operators().items()}


def _operators() -> dict[Any, tuple[str, str]]:
    """PyTorch's operators, each a stack of layers, with ONNX's operator and the activation of an RNN."""
    aten = require("torch", why="export models").ops.aten
    return {
        aten.rnn_tanh.input: ("RNN", "Tanh"),
        aten.rnn_relu.input: ("RNN", "Relu"),
        aten.gru.input: ("GRU", ""),
        aten.lstm.input: ("LSTM", ""),
    }


def _shapes(
    x: Any, hx: Any, params: Any, biases: bool, layers: int, dropout: float, train: bool, both: bool, batch_first: bool
) -> tuple[Any, ...]:
    """Tensors of the shapes of PyTorch's results: the last layer's output, and the last state (two of an LSTM)."""
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    sizes = {s.shape[2] for s in states}
    if len(sizes) > 1:
        raise NotImplementedError("an LSTM with a projection (proj_size) has no ONNX form; put a Linear after it")
    output = x.new_empty([*x.shape[:2], states[0].shape[2] * (2 if both else 1)])
    return (output, *(s.new_empty(s.shape) for s in states))


def _translation(kind: str, activation: str) -> Callable[..., Any]:
    """The translation of a stack of layers; its parameters are those of PyTorch's operator."""

    def translate(
        input: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        op = require("onnxscript", why="export models").opset18
        states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
        directions = 2 if bidirectional else 1
        each = (4 if has_biases else 2) * directions
        hidden = int(params[1].shape[1])
        attributes: dict[str, Any] = {
            "hidden_size": hidden,
            "direction": "bidirectional" if bidirectional else "forward",
        }
        if kind == "GRU":
            attributes["linear_before_reset"] = 1  # as PyTorch has it
        if activation:  # the schema's own two are one too many for TensorRT where there is one direction
            attributes["activations"] = [activation] * directions
        x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last: list[list[Any]] = [[] for _ in states]
        for layer in range(num_layers):
            own = params[layer * each : (layer + 1) * each]
            ways = [own[i : i + each // directions] for i in range(0, each, each // directions)]
            weights = [_packed(op, kind, [way[i : i + 1] for way in ways]) for i in (0, 1)]
            bias = _packed(op, kind, [way[2:] for way in ways]) if has_biases else None
            start = [_part(op, s, layer * directions, directions, num_layers) for s in states]
            y, *end = getattr(op, kind)(x, *weights, bias, None, *start, **attributes)
            for states_of, state in zip(last, end):
                states_of.append(state)
            if bidirectional:  # (time, 2, batch, hidden) to (time, batch, 2 * hidden)
                x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, 2 * hidden]))
            else:
                x = op.Squeeze(y, op.Constant(value_ints=[1]))
        if batch_first:
            x = op.Transpose(x, perm=[1, 0, 2])
        return (x, *(s[0] if num_layers == 1 else op.Concat(*s, axis=0) for s in last))

    return translate


def _packed(op: Any, kind: str, ways: Sequence[Sequence[Any]]) -> Any:
    """Weights of each direction (or its two biases), gates in ONNX's order, as one tensor (directions, gates, ...).

    It is a constant if they are, which weights that the model computes (a weight norm) are not.
    """
    values = [[v.const_value for v in way] for way in ways]
    if all(v is not None for way in values for v in way):
        ir = require("onnx_ir", why="export models")
        whole = np.stack([np.concatenate([_reordered(v.numpy(), kind) for v in way]) for way in values])
        return op.Constant(value=ir.tensor(np.ascontiguousarray(whole), dtype=values[0][0].dtype))
    parts = []
    for way in ways:
        order = _reordered(np.arange(int(way[0].shape[0])), kind).tolist()
        moved = [op.Gather(v, op.Constant(value_ints=order), axis=0) for v in way]
        parts.append(
            op.Unsqueeze(moved[0] if len(moved) == 1 else op.Concat(*moved, axis=0), op.Constant(value_ints=[0]))
        )
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def _reordered(weight: Any, kind: str) -> Any:
    gates = np.split(weight, len(_ORDER[kind]))
    return np.concatenate([gates[g] for g in _ORDER[kind]])


def _part(op: Any, state: Any, start: int, count: int, layers: int) -> Any:
    """The first state of one layer; None where it is zero anyway."""
    maker = state.producer()
    if maker is not None and maker.op_type == "Expand":
        value = require("onnx_ir", why="export models").convenience.get_const_tensor(maker.inputs[0])
        if value is not None and not value.numpy().any():
            return None
    if layers == 1:
        return state
    ends = (op.Constant(value_ints=[start]), op.Constant(value_ints=[start + count]), op.Constant(value_ints=[0]))
    return op.Slice(state, *ends)
