"""BatchNormalization at inference is a scale and a shift of the convolution before it: fold it into the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.export.cleanup import remove_dead, uses
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")


def fold_batchnorm(model: onnx.ModelProto) -> int:
    """Fold every BatchNormalization that directly follows a Conv, ConvTranspose or Gemm, in place; how many it was.

    With scale s, shift b, mean m and variance v, y = s (x - m) / sqrt(v + eps) + b; so the weights of each output
    channel are multiplied by f = s / sqrt(v + eps), and the bias becomes (bias - m) f + b. Computed in float64.
    """
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    read = uses(graph)
    outputs = {o.name for o in graph.output}
    folded = 0
    for norm in list(graph.node):
        if norm.op_type != "BatchNormalization" or _trains(norm) or any(n not in values for n in norm.input[1:5]):
            continue
        layer = makers.get(norm.input[0])
        if layer is None or layer.op_type not in FOLDS_INTO or read[norm.input[0]] != 1 or norm.input[0] in outputs:
            continue
        if any(n not in values for n in layer.input[1:] if n):
            continue
        if _fold(graph, layer, norm, values):
            makers[layer.output[0]] = layer
            folded += 1
    if folded:
        remove_dead(model)
    return folded


def _trains(norm: Any) -> bool:
    if any(a.name == "training_mode" and a.i for a in norm.attribute):
        return True
    return any(norm.output[1:])


def _fold(graph: onnx.GraphProto, layer: Any, norm: Any, values: dict[str, Any]) -> bool:
    onnx = require("onnx", why="fold BatchNormalization")
    array = {n: onnx.numpy_helper.to_array(values[n]) for n in (*norm.input[1:5], *(n for n in layer.input[1:] if n))}
    scale, shift, mean, variance = (array[n].astype(np.float64) for n in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    weight = array[layer.input[1]]
    scaled = _scaled(layer, weight.astype(np.float64), factor)
    if scaled is None:
        return False
    bias_name = layer.input[2] if len(layer.input) > 2 else ""
    bias = array[bias_name].astype(np.float64) if bias_name else np.zeros(len(factor))
    if bias.size not in (1, len(factor)):
        return False
    beta = next((a.f for a in layer.attribute if a.name == "beta"), 1.0) if layer.op_type == "Gemm" else 1.0
    if layer.op_type == "Gemm":
        for attribute in layer.attribute:
            if attribute.name == "beta":
                attribute.f = 1.0
    new_bias = (np.broadcast_to(bias.reshape(-1), factor.shape) * beta - mean) * factor + shift
    names = [f"{layer.input[1]}_folded", f"{bias_name or layer.output[0] + '_bias'}_folded"]
    for i, (name, value) in enumerate(zip(names, (scaled, new_bias))):
        while name in values:
            name += "_"
        names[i] = name
        values[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value.astype(weight.dtype)), name)
        graph.initializer.append(values[name])
    del layer.input[1:]
    layer.input.extend(names)
    layer.output[0] = norm.output[0]
    norm.output[0] = ""  # dead now: remove_dead takes it
    return True


def _scaled(layer: Any, weight: Array, factor: Array) -> Array | None:
    """`weight` with each output channel times its factor, or None if the channels do not fit."""
    attributes = {a.name: a for a in layer.attribute}
    channels = len(factor)
    if layer.op_type == "Conv":  # (out, in / group, ...)
        if weight.shape[0] != channels:
            return None
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "ConvTranspose":  # (in, out / group, ...): input channels of a group feed its outputs
        group = attributes["group"].i if "group" in attributes else 1
        if weight.shape[1] * group != channels:
            return None
        blocks = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        spread = factor.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (blocks * spread).reshape(weight.shape)
    transposed = "transB" in attributes and attributes["transB"].i
    if weight.shape[0 if transposed else 1] != channels:
        return None
    return weight * (factor[:, None] if transposed else factor[None, :])
