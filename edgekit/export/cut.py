"""Cuts one ONNX graph into parts that run one after the other, at named tensors or where parts of equal work meet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, UsageError
from edgekit.graphs import annotated, infer_shapes, load_model, node_flops, save_model, tensor_shapes

if TYPE_CHECKING:
    import onnx

WINDOW = 0.25
"""How far from its share of the work a part may end, as a fraction of that share, to hand on less data."""


def parts_from_file(path: Path, folder: Path, *, count: int = 0, at: Sequence[str] = ()) -> list[Path]:
    """The model in `path` as several files in `folder`, in the order they run: NAME_1.onnx, NAME_2.onnx, ...

    Either `count` parts of about equal work, or one more than there are names in `at`: each ends with what those
    tensors need. Whatever else a later part reads of an earlier one is handed on too, by its name.

    Raises:
        ModelError: unreadable, or a tensor at a cut has an unknown type.
        UsageError: no such tensor, or no more parts to be had.
    """
    model = annotated(load_model(path))
    parts = _parts_ending_at(model, at) if at else _equal_parts(model, count)
    out = []
    for i, part in enumerate(_cut(model, parts), 1):
        out.append(folder / f"{path.stem}_{i}.onnx")
        save_model(part, out[-1])
    return out


def _parts_ending_at(model: onnx.ModelProto, tensors: Sequence[str]) -> list[list[Any]]:
    """The nodes of each part: those that the first tensor needs, what the second needs beside them, ..., the rest."""
    nodes = list(model.graph.node)
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    taken: set[int] = set()
    parts = []
    for tensor in tensors:
        if tensor not in producer:
            raise UsageError(f"Tensor '{tensor}' is not made by any node of the model, so it cannot be cut there.")
        todo, own = [producer[tensor]], set()
        while todo:
            index = todo.pop()
            if index in own or index in taken:
                continue
            own.add(index)
            todo += [producer[name] for name in _reads(nodes[index]) if name in producer]
        parts.append(sorted(own))
        taken |= own
    parts.append([i for i in range(len(nodes)) if i not in taken])
    for tensor, part in zip((*tensors, "the last tensor"), parts):
        if not part:
            raise UsageError(
                f"The part at '{tensor}' is empty. Name tensors in the order in which the model makes them."
            )
    return [[nodes[i] for i in part] for part in parts]


def _equal_parts(model: onnx.ModelProto, count: int) -> list[list[Any]]:
    """`count` runs of nodes of about equal work, each ending where little data passes on."""
    nodes = list(model.graph.node)
    if not 2 <= count <= len(nodes):
        raise UsageError(f"A model of {len(nodes)} nodes cannot become {count} stages; expected 2 to {len(nodes)}.")
    sized = infer_shapes(model, dict.fromkeys(_free_dimensions(model), 1))
    shapes = tensor_shapes(sized)
    weights = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    work = [1.0 + (node_flops(n, shapes) or sum(2 * weights.get(i, 0) for i in n.input)) for n in nodes]
    total, done, sums = sum(work), 0.0, []
    for value in work:
        done += value
        sums.append(done / total)
    passing = _passing(model, nodes, shapes)
    ends: list[int] = []
    for part in range(1, count):
        target, first = part / count, (ends[-1] + 1 if ends else 0)
        last = len(nodes) - (count - part)
        near = [i for i in range(first, last) if abs(sums[i] - target) <= WINDOW / count]
        choice = near or range(first, last)
        ends.append(
            min(
                choice,
                key=lambda i: (passing[i], abs(sums[i] - target)) if near else (abs(sums[i] - target), passing[i]),
            )
        )
    edges = [-1, *ends, len(nodes) - 1]
    return [nodes[a + 1 : b + 1] for a, b in itertools.pairwise(edges)]


def _passing(model: onnx.ModelProto, nodes: Sequence[Any], shapes: dict[str, tuple[int, ...]]) -> list[float]:
    """For each node the elements that are handed on if the graph is cut behind it; unknown shapes count as many."""
    made = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    last = dict(made)
    for i, node in enumerate(nodes):
        for name in _reads(node):
            if name in made:
                last[name] = i
    out = [0.0] * len(nodes)
    for name, start in made.items():
        size = math.prod(shapes[name]) if name in shapes else 1e9
        for i in range(start, last[name]):
            out[i] += size
    return out


def _free_dimensions(model: onnx.ModelProto) -> set[str]:
    return {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}


def _cut(model: onnx.ModelProto, parts: Sequence[Sequence[Any]]) -> Iterator[onnx.ModelProto]:
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    known = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    results = [v.name for v in graph.output]
    reads = [list(dict.fromkeys(name for n in part for name in _reads(n))) for part in parts]
    for i, part in enumerate(parts):
        own = {o for n in part for o in n.output if o}
        later = {name for names in reads[i + 1 :] for name in names} | set(results)
        takes = [name for name in reads[i] if name not in own and name not in weights]
        gives = [name for n in part for name in n.output if name in later]
        yield _part(model, part, [_value(known, n) for n in takes], [_value(known, n) for n in gives], set(reads[i]))


def _part(
    model: onnx.ModelProto, nodes: Sequence[Any], takes: Sequence[Any], gives: Sequence[Any], reads: Collection[str]
) -> onnx.ModelProto:
    part = type(model)()
    part.CopyFrom(model)
    graph = part.graph
    weights = [t for t in model.graph.initializer if t.name in reads]
    values = [v for v in model.graph.value_info if v.name in reads or any(v.name in n.output for n in nodes)]
    ends = {v.name for v in (*takes, *gives)}
    for field in (graph.node, graph.input, graph.output, graph.initializer, graph.value_info):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend(takes)
    graph.output.extend(gives)
    graph.initializer.extend(weights)
    graph.value_info.extend(v for v in values if v.name not in ends)
    return part


def _value(known: dict[str, Any], name: str) -> Any:
    value = known.get(name)
    if value is None or not value.type.tensor_type.elem_type:
        raise ModelError(f"The type of tensor '{name}' at a cut is not known. Cut at another tensor.")
    return value


def _reads(node: Any) -> list[str]:
    """Every tensor that `node` reads from the graph around it, in its bodies too."""
    out = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            own = {t.name for t in body.initializer} | {v.name for v in body.input}
            own |= {o for n in body.node for o in n.output}
            inner = [name for n in body.node for name in _reads(n)] + [v.name for v in body.output]
            out += [name for name in inner if name not in own]
    return out
