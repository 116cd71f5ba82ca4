"""Weight-only INT8 and INT4: matrix products of transformers read small weights and compute in float.

Weights are symmetric with one scale for each block of `BLOCK` values along the depth, written as the standard blocked
DequantizeLinear of opset 21. What is gained is size and memory traffic; activations need no calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit._lazy import require
from edgekit.errors import ModelError, UsageError
from edgekit.graphs import opset_of, raised_to
from edgekit.quantize.graph import Graph
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

BLOCK = 32
SMALLEST = 1024
"""Weights with fewer values stay float: their scales would cost more than they save."""

_OPSET = 21
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def blocked(weight: Array, *, bits: int, block: int = BLOCK) -> tuple[Array, Array]:
    """`weight` (depth, width) as integers of `bits` and scales (ceil(depth / block), width).

    Each block's scale is the one of a few, from the largest value down, that leaves the smallest squared error.
    """
    top = 2 ** (bits - 1) - 1
    depth, width = weight.shape
    padded = np.pad(weight.astype(np.float64), ((0, -depth % block), (0, 0))).reshape(-1, block, width)
    peak = np.maximum(np.abs(padded).max(axis=1, keepdims=True), 1e-12)
    best = np.full((len(padded), 1, width), np.inf)
    scale = peak / top
    for shrink in _SHRINKS:
        tried = peak * shrink / top
        error = ((np.clip(np.rint(padded / tried), -top - 1, top) * tried - padded) ** 2).sum(axis=1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    scale = scale.astype(np.float32)
    values = np.clip(np.rint(padded / scale), -top - 1, top).reshape(-1, width)[:depth]
    return values.astype(np.int8), scale[:, 0]


def weight_only(model: onnx.ModelProto, *, bits: int) -> onnx.ModelProto:
    """`model` (prepared) with the weights of its large MatMuls and Gemms in `bits` (4 or 8).

    Raises:
        UsageError: it has none.
        ModelError: its opset cannot be raised to 21.
    """
    types = require("ml_dtypes", why="write four-bit weights")
    if opset_of(model) < _OPSET:
        try:
            model = raised_to(model, _OPSET)
        except Exception as error:
            raise ModelError(
                f"The model's opset {opset_of(model)} cannot be raised to {_OPSET}, which blocks of weights need. "
                "Export it again with --opset 21."
            ) from error
    graph = Graph(model)
    changed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm") or not graph.is_float(node.input[1]):
            continue
        name, weight = node.input[1], graph.constants[node.input[1]]
        if weight.ndim != 2 or weight.size < SMALLEST:
            continue
        if name not in changed:
            turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
            values, scale = blocked(weight.T if turned else weight, bits=bits)
            if turned:
                values, scale = values.T.copy(), scale.T.copy()
            stored = values.astype(types.int4) if bits == 4 else values
            changed[name] = graph.fresh(f"{name}_dequantized")
            inputs = [graph.constant(f"{name}_int{bits}", stored), graph.constant(f"{name}_scale", scale)]
            graph.node("DequantizeLinear", inputs, [changed[name]], axis=1 if turned else 0, block_size=BLOCK)
        node.input[1] = changed[name]
    if not changed:
        raise UsageError(f"The model has no MatMul or Gemm with {SMALLEST} weights or more, so nothing would change.")
    graph.refresh()
    return graph.model()
