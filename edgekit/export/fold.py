"""A scale and a shift of a layer's output, such as BatchNormalization at inference, go into its weights."""

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
    scale, shift, mean, variance = (onnx.numpy_helper.to_array(values[n]).astype(np.float64) for n in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    return _apply(graph, layer, norm, values, factor, shift - mean * factor)


def fold_affine(model: onnx.ModelProto) -> int:
    """Fold additions, subtractions, products and quotients with one constant a channel into the convolution before.

    In place; returns how many nodes went. Channels-last models have their BatchNorm written so, and exporters the
    bias of a convolution.
    """
    onnx = require("onnx", why="fold into convolutions")
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    read, outputs = uses(graph), {o.name for o in graph.output}
    folded = 0
    for node in list(graph.node):
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
            continue
        place = 1 if node.input[1] in values else 0
        layer = makers.get(node.input[1 - place])
        if node.input[place] not in values or layer is None or layer.op_type not in ("Conv", "ConvTranspose"):
            continue
        if place == 0 and node.op_type in ("Sub", "Div"):  # constant - x
            continue
        source = node.input[1 - place]
        if read[source] != 1 or source in outputs or any(n not in values for n in layer.input[1:] if n):
            continue
        constant = onnx.numpy_helper.to_array(values[node.input[place]]).astype(np.float64)
        channels = _channels(layer, values)
        rank = len(values[layer.input[1]].dims)
        if constant.size not in (1, channels) or constant.ndim > rank:
            continue
        if constant.size > 1 and (constant.ndim < rank - 1 or constant.shape[1 - rank] != channels):
            continue  # the constant differs along another axis
        each = np.broadcast_to(constant.reshape(-1), (channels,))
        if node.op_type == "Div" and not each.all():
            continue
        factor = {"Mul": each, "Div": 1 / np.where(each == 0, 1, each)}.get(node.op_type, np.ones(channels))
        shift = {"Add": each, "Sub": -each}.get(node.op_type, np.zeros(channels))
        if _apply(graph, layer, node, values, factor, shift):
            makers[layer.output[0]] = layer
            folded += 1
    if folded:
        remove_dead(model)
    return folded


def _channels(layer: Any, values: dict[str, Any]) -> int:
    """Output channels of a convolution."""
    dims = values[layer.input[1]].dims
    if layer.op_type == "Conv":
        return int(dims[0])
    return int(dims[1]) * next((a.i for a in layer.attribute if a.name == "group"), 1)


def _apply(graph: onnx.GraphProto, layer: Any, after: Any, values: dict[str, Any], factor: Array, shift: Array) -> bool:
    """Let `layer` give factor * y + shift for each channel, as the node `after` did; False if its channels differ."""
    onnx = require("onnx", why="fold BatchNormalization")
    weight = onnx.numpy_helper.to_array(values[layer.input[1]])
    scaled = _scaled(layer, weight.astype(np.float64), factor)
    if scaled is None:
        return False
    bias_name = layer.input[2] if len(layer.input) > 2 else ""
    bias = onnx.numpy_helper.to_array(values[bias_name]).astype(np.float64) if bias_name else np.zeros(len(factor))
    if bias.size not in (1, len(factor)):
        return False
    beta = next((a.f for a in layer.attribute if a.name == "beta"), 1.0) if layer.op_type == "Gemm" else 1.0
    if layer.op_type == "Gemm":
        for attribute in layer.attribute:
            if attribute.name == "beta":
                attribute.f = 1.0
    new_bias = np.broadcast_to(bias.reshape(-1), factor.shape) * beta * factor + shift
    names = [f"{layer.input[1]}_folded", f"{bias_name or layer.output[0] + '_bias'}_folded"]
    for i, (name, value) in enumerate(zip(names, (scaled, new_bias))):
        while name in values:
            name += "_"
        names[i] = name
        values[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value.astype(weight.dtype)), name)
        graph.initializer.append(values[name])
    del layer.input[1:]
    layer.input.extend(names)
    layer.output[0] = after.output[0]
    after.output[0] = ""  # dead now: remove_dead takes it
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
