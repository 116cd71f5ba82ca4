"""Equalisation through attention: the channels of V may be rescaled if the projection after it takes the factors back.

Between the product that makes V and the one that reads P x V lie reshapes, transposes, slices and the product with P,
whose rows sum to one. Which channel goes where is found by sending channel numbers instead of values through the
graph itself, so that any way of writing attention is understood, and a rescaled model is believed only if its float
outputs stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.calibrate import observe
from edgekit.quantize.channels import LIMIT, divide_output
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph
from edgekit.quantize.placement import weight_axis
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

_SHAPES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten", "Identity")


@dataclass(frozen=True)
class Link:
    """V's way: `maker` and constants added to it (`offsets`: node, input), and `reader` of P x V.

    `source[j]` is the maker's output channel that the reader's input channel j comes from.
    """

    maker: str
    offsets: tuple[tuple[str, int], ...]
    reader: str
    source: Array


def attention_links(model: onnx.ModelProto, data: CalibrationData) -> list[Link]:
    """All links of `model`; `data` is run to trace channels (two rows are enough)."""
    graph = Graph(model)
    rows = data.take(np.arange(min(2, data.count)))
    out = []
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm") or not graph.is_float(node.input[1]):
            continue
        found = _way_back(graph, node)
        if found is None:
            continue
        maker, offsets, cut = found
        source = _traced(model, cut, str(node.input[0]), _channels(graph, maker), rows)
        if source is not None and len(source) == graph.constants[node.input[1]].shape[1 - weight_axis(node)]:
            out.append(Link(maker.name, tuple((n.name, i) for n, i in offsets), node.name, source))
    return out


def _channels(graph: Graph, maker: Any) -> int:
    return int(graph.constants[maker.input[1]].shape[weight_axis(maker)])


def _way_back(graph: Graph, reader: Any) -> tuple[Any, list[tuple[Any, int]], str] | None:
    name, through, cut = str(reader.input[0]), 0, ""
    offsets: list[tuple[Any, int]] = []
    while (node := graph.producer.get(name)) is not None:
        constant = [i in graph.constants for i in node.input]
        if node.op_type in ("MatMul", "Gemm") and constant[1]:
            return (node, offsets, cut or name) if through == 1 and graph.is_float(node.input[1]) else None
        if node.op_type == "MatMul":
            name, through, offsets, cut = str(node.input[1]), through + 1, [], ""
        elif node.op_type in _SHAPES:
            if offsets:
                return None
            name = str(node.input[0])
        elif node.op_type == "Add" and sum(constant) == 1 and graph.is_float(node.input[constant.index(True)]):
            offsets.append((node, constant.index(True)))
            cut = cut or name
            name = str(node.input[constant.index(False)])
        else:
            return None
    return None


def _traced(model: onnx.ModelProto, cut: str, end: str, width: int, rows: CalibrationData) -> Array | None:
    """Send channel numbers from `cut` to `end`; None if a channel of `end` mixes several."""
    graph = Graph(model)
    if cut in graph.outputs:
        return None
    nothing, numbers = graph.fresh(f"{cut}_nothing"), graph.fresh(f"{cut}_numbers")
    readers = list(graph.consumers.get(cut, []))
    graph.node("Mul", [cut, graph.constant("no_value", np.zeros((), np.float32))], [nothing])
    graph.node("Add", [nothing, graph.constant("channel", np.arange(width, dtype=np.float32))], [numbers])
    for node, i in readers:
        node.input[i] = numbers
    graph.refresh()
    seen: list[Array] = []
    observe(graph.model(), [end], rows, lambda _name, values: seen.append(values.reshape(-1, values.shape[-1])))
    values = np.concatenate(seen)
    source = np.rint(values.mean(axis=0)).astype(int)
    sound = np.isfinite(values).all() and np.abs(values - source).max() < 0.3
    return source if sound and source.min() >= 0 and source.max() < width else None


def attention_equalized(
    model: onnx.ModelProto, links: Sequence[Link], peaks: Mapping[str, Array], *, strength: float
) -> onnx.ModelProto:
    """`model` with V's channels rescaled by `strength`; `peaks` hold the magnitudes of the readers' inputs."""
    graph = Graph(model)
    nodes = {n.name: n for n in graph.nodes}
    for link in links:
        maker, reader = nodes[link.maker], nodes[link.reader]
        width, axis = _channels(graph, maker), weight_axis(reader)
        weight = graph.constants[reader.input[1]]
        columns, active = np.zeros(width), np.zeros(width)
        np.maximum.at(active, link.source, peaks[reader.input[0]])
        np.maximum.at(columns, link.source, np.abs(weight).max(axis=axis))
        live = (active > 0) & (columns > 0)
        if not live.any():
            continue
        factor = np.ones(width)
        factor[live] = active[live] ** strength / columns[live] ** (1 - strength)
        factor[live] /= np.exp(np.log(factor[live]).mean())
        factor = np.clip(factor, 1 / LIMIT, LIMIT)
        divide_output(graph, maker, factor)
        for name, index in link.offsets:
            value = graph.constants[nodes[name].input[index]]
            scaled = (value / factor if value.size > 1 else np.broadcast_to(value, (width,)) / factor).astype(
                np.float32
            )
            nodes[name].input[index] = graph.constant(f"{nodes[name].input[index]}_equal", scaled)
        spread = factor[link.source]
        changed = weight * (spread[:, None] if axis == 1 else spread[None])
        reader.input[1] = graph.constant(f"{reader.input[1]}_equal", changed.astype(np.float32))
    return graph.model()
