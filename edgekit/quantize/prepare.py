"""From any ONNX model to the plain float graph that the quantizer works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.errors import ModelError, UsageError
from edgekit.graphs import all_nodes, opset_of, raised_to
from edgekit.quantize.graph import Graph, attribute
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

MINIMUM_OPSET = 13
"""The first opset with a scale for each channel."""

_TARGET_OPSET = 17

_FOLDABLE = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with constants as initializers, BatchNorm folded, no Dropout or Identity, every node named.

    Raises:
        UsageError: the model is quantised already.
        ModelError: its opset is too old and cannot be raised, or its weights are not float32.
    """
    refuse_quantized(model)
    opset = opset_of(model)
    if opset < MINIMUM_OPSET:
        try:
            model = raised_to(model, _TARGET_OPSET)
        except Exception as error:
            text = str(error).strip().splitlines()
            raise ModelError(
                f"The model has opset {opset} and cannot be raised to {MINIMUM_OPSET}, which INT8 needs: "
                f"{text[0] if text else type(error).__name__}. Export it again with a newer opset."
            ) from error
    graph = Graph(model)
    for i, node in enumerate(graph.nodes):
        if not node.name:
            node.name = graph.fresh(f"{node.op_type}_{i}")
    _constants(graph)
    _bypass(graph)
    _fold_constants(graph, opset_of(model))
    _average_pools(graph, opset_of(model))
    _fold_batch_norms(graph)
    _fold_gemm_factors(graph)
    return graph.model()


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Raise UsageError if activations of `model` are quantised already."""
    for node in all_nodes(model):
        kind = node.op_type
        if kind in ("QuantizeLinear", "DynamicQuantizeLinear") or kind.startswith("QLinear") or "Integer" in kind:
            raise UsageError(
                f"The model is quantised already (node '{node.name or kind}', {kind}). Start from its float version."
            )


def _constants(graph: Graph) -> None:
    onnx = require("onnx", why="quantize models")
    for node in list(graph.nodes):
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_float", "value_int"):
            value = onnx.helper.get_attribute_value(node.attribute[0])
            kind = node.attribute[0].name
            if kind == "value":
                value = onnx.numpy_helper.to_array(value)
            else:
                value = np.asarray(value, np.float32 if kind == "value_float" else np.int64)
            graph.constants[node.output[0]] = value
            graph.remove(node)
        elif node.op_type == "DequantizeLinear" and all(i in graph.constants for i in node.input if i):
            graph.constants[node.output[0]] = _dequantized(node, graph)
            graph.remove(node)
    graph.refresh()


def _fold_constants(graph: Graph, opset: int) -> None:
    """Evaluate what depends on constants only, in the graph's order (recurrent weights are often sliced so)."""
    onnx = require("onnx", why="quantize models")
    evaluator = require("onnx.reference", why="quantize models").ReferenceEvaluator
    for node in list(graph.nodes):
        given = [i for i in node.input if i]
        if node.op_type not in _FOLDABLE or not given or any(i not in graph.constants for i in given):
            continue
        inputs = [onnx.helper.make_tensor_value_info(i, 0, None) for i in dict.fromkeys(given)]
        for value in inputs:
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(graph.constants[value.name].dtype)
        outputs = [onnx.helper.make_empty_tensor_value_info(o) for o in node.output if o]
        if any(o.name in graph.outputs for o in outputs):
            continue
        alone = onnx.helper.make_model(
            onnx.helper.make_graph([node], "fold", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
        results = evaluator(alone).run(None, {i: graph.constants[i] for i in given})
        for output, value in zip(outputs, results):
            graph.constants[output.name] = np.asarray(value)
        graph.remove(node)
    graph.refresh()


def _average_pools(graph: Graph, opset: int) -> None:
    """A mean over all positions of an image is a GlobalAveragePool, which has an eight-bit kernel."""
    for node in list(graph.nodes):
        source = graph.producer.get(node.input[0]) if node.op_type == "ReduceMean" else None
        while source is not None and source.op_type in ("Relu", "Add", "Clip"):
            source = graph.producer.get(source.input[0])
        if source is None or source.op_type != "Conv":
            continue
        axes = attribute(node, "axes") if len(node.input) < 2 else graph.constants.get(node.input[1])
        rank = graph.constants[source.input[1]].ndim if source.input[1] in graph.constants else 0
        if axes is None or sorted(int(a) % max(rank, 1) for a in axes) != list(range(2, rank)):
            continue
        pooled = node.output[0] if attribute(node, "keepdims", 1) else graph.fresh(f"{node.output[0]}_pooled")
        graph.remove(node)
        graph.node("GlobalAveragePool", [node.input[0]], [pooled])
        if pooled != node.output[0]:
            graph.node("Flatten", [pooled], [node.output[0]])
        graph.refresh()


def _dequantized(node: Any, graph: Graph) -> Array:
    value, scale = graph.constants[node.input[0]], graph.constants[node.input[1]]
    zero = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
    shape = [1] * value.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[attribute(node, "axis", 1) % value.ndim] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return ((value.astype(np.float64) - zero) * scale).astype(np.float32)


def _bypass(graph: Graph) -> None:
    """Drop Identity and Dropout where neither end is an output of the graph."""
    for node in list(graph.nodes):
        if node.op_type not in ("Identity", "Dropout"):
            continue
        source, result = node.input[0], node.output[0]
        extra = [o for o in node.output[1:] if o and (graph.consumers.get(o) or o in graph.outputs)]
        if extra or result in graph.outputs or result in graph.captured:
            continue
        for user, i in graph.consumers.get(result, []):
            user.input[i] = source
        graph.remove(node)
        graph.refresh()


def _fold_batch_norms(graph: Graph) -> None:
    """BatchNorm after Conv or ConvTranspose goes into its weights; others stay."""
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization" or any(i not in graph.constants for i in node.input[1:5]):
            continue
        gamma, beta, mean, var = (graph.constants[i].astype(np.float64) for i in node.input[1:5])
        factor = gamma / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        shift = beta - mean * factor
        conv = graph.producer.get(node.input[0])
        if conv is None:
            continue
        fits = conv.op_type in ("Conv", "ConvTranspose") and graph.only_use(node.input[0]) is node
        if fits and _scale_conv(graph, conv, factor, shift):
            conv.output[0] = node.output[0]
            graph.remove(node)
            graph.refresh()


def _scale_conv(graph: Graph, conv: Any, factor: Array, shift: Array) -> bool:
    has_bias = len(conv.input) > 2 and conv.input[2]
    if conv.input[1] not in graph.constants or (has_bias and conv.input[2] not in graph.constants):
        return False
    weight = graph.constants[conv.input[1]].astype(np.float64)
    bias = graph.constants[conv.input[2]].astype(np.float64) if has_bias else np.zeros_like(shift)
    if conv.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # (in, out / group, ...): output channels of each group lie along axis 1
        group = attribute(conv, "group", 1)
        parts = np.split(weight, group, axis=0)
        factors = np.split(factor, group)
        tail = [1] * (weight.ndim - 2)
        scaled = np.concatenate([p * f.reshape(1, -1, *tail) for p, f in zip(parts, factors)], axis=0)
    new = [
        conv.input[0],
        graph.constant(f"{conv.input[1]}_folded", scaled.astype(np.float32)),
        graph.constant(f"{conv.name}_bias", (bias * factor + shift).astype(np.float32)),
    ]
    del conv.input[:]
    conv.input.extend(new)
    return True


def _fold_gemm_factors(graph: Graph) -> None:
    """Gemm's alpha and beta go into constant weights and bias, so that every Gemm is a plain product."""
    for node in graph.nodes:
        if node.op_type != "Gemm":
            continue
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        has_bias = len(node.input) > 2 and node.input[2]
        if (alpha != 1 and not graph.is_float(node.input[1])) or (
            beta != 1 and has_bias and not graph.is_float(node.input[2])
        ):
            continue
        if alpha != 1:
            node.input[1] = graph.constant(
                f"{node.input[1]}_scaled", graph.constants[node.input[1]] * np.float32(alpha)
            )
        if beta != 1 and has_bias:
            node.input[2] = graph.constant(f"{node.input[2]}_scaled", graph.constants[node.input[2]] * np.float32(beta))
        kept = [a for a in node.attribute if a.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
