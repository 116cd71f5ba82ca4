"""If nodes whose answer the shapes decide: within an engine's profiles they are always the same branch.

Exporters leave such conditions where a model asks for the rank or length of a tensor. TensorRT builds both branches of
each, or fails on nested ones; with the branch put in place there is nothing left to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.engine.profiles import Profile
from edgekit.errors import EdgekitError
from edgekit.graphs import model_specs
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Tensors, numpy_dtype

if TYPE_CHECKING:
    import onnx

_LARGEST_FEED = 1 << 28
"""Bytes of inputs up to which a model is run to learn its conditions."""


def conditions_resolved(model: onnx.ModelProto, profiles: Sequence[Profile]) -> tuple[onnx.ModelProto, int]:
    """A copy of `model` with every If that the shapes of `profiles` decide replaced by its branch, and how many.

    The model comes back as it is if it has none, or if they cannot be learnt.
    """
    if not any(n.op_type == "If" for n in model.graph.node):
        return model, 0
    out = type(model)()
    out.CopyFrom(model)
    count = 0
    while True:
        answers = _answers(out, profiles)
        if not answers:
            return (out, count) if count else (model, 0)
        for name, answer in answers.items():
            _put_in_place(out, name, answer)
            count += 1


def _answers(model: onnx.ModelProto, profiles: Sequence[Profile]) -> dict[str, bool]:
    """First output of an If node -> the branch that it takes for every shape."""
    producer = {o: n for n in model.graph.node for o in n.output}
    inputs = {v.name for v in model.graph.input}
    nodes = [n for n in model.graph.node if n.op_type == "If" and _by_shape(n.input[0], producer, inputs)]
    if not nodes:
        return {}
    probe = type(model)()
    probe.CopyFrom(model)
    onnx = require("onnx", why="read ONNX models")
    del probe.graph.output[:]
    for name in dict.fromkeys(n.input[0] for n in nodes):
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None))
    seen: dict[str, set[bool]] = {}
    try:
        with OrtSession(probe.SerializeToString(), threads=1) as session:
            for feed in _feeds(model, profiles):
                if sum(a.nbytes for a in feed.values()) > _LARGEST_FEED:
                    return {}
                for name, value in session.run(feed).items():
                    seen.setdefault(name, set()).add(bool(value.reshape(-1)[0]))
    except (EdgekitError, ValueError):  # a model that ONNX Runtime cannot run is left as it is
        return {}
    return {n.output[0]: seen[n.input[0]].pop() for n in nodes if len(seen.get(n.input[0], ())) == 1}


def _by_shape(name: str, producer: Mapping[str, Any], inputs: set[str]) -> bool:
    """Whether the value of `name` follows from shapes and constants alone."""
    todo, seen = [name], set()
    while todo:
        current = todo.pop()
        if current in inputs:
            return False
        node = producer.get(current)
        if node is None or current in seen or node.op_type in ("Shape", "Size"):
            continue
        if any(a.g.node or a.graphs for a in node.attribute):
            return False  # a branch may read anything
        seen.add(current)
        todo += [i for i in node.input if i]
    return True


def _feeds(model: onnx.ModelProto, profiles: Sequence[Profile]) -> Iterator[Tensors]:
    """Zeros in the smallest, tuned-for and largest shapes of every profile."""
    specs, _ = model_specs(model)
    for profile in profiles or [{}]:
        shapes: set[tuple[tuple[int, ...], ...]] = set()
        for which in ("min", "opt", "max"):
            row = tuple(getattr(profile[s.name], which) if s.name in profile else s.concrete() for s in specs)
            if row not in shapes:
                shapes.add(row)
                yield {s.name: np.zeros(shape, numpy_dtype(s.dtype)) for s, shape in zip(specs, row)}


def _put_in_place(model: onnx.ModelProto, output: str, answer: bool) -> None:
    """Replace the If node whose first output is `output` by the branch for `answer`."""
    onnx = require("onnx", why="rewrite ONNX models")
    graph = model.graph
    at, node = next((i, n) for i, n in enumerate(graph.node) if output in n.output)
    wanted = "then_branch" if answer else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == wanted)
    prefix = f"{node.name or output}/"
    names = {o: f"{prefix}{o}" for n in branch.node for o in n.output if o}
    names.update((t.name, f"{prefix}{t.name}") for t in branch.initializer)
    inner = [type(node).FromString(n.SerializeToString()) for n in branch.node]
    extra = []
    for value, result in zip(branch.output, node.output):
        if any(value.name in n.output for n in branch.node) and names[value.name].startswith(prefix):
            names[value.name] = result
        else:  # the branch hands on a value from outside, a weight, or one value twice
            source = names.get(value.name, value.name)
            extra.append(onnx.helper.make_node("Identity", [source], [result], name=f"{prefix}{result}"))
    for n in inner:
        _rename(n, names)
        n.name = f"{prefix}{n.name}" if n.name else ""
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    kept = [type(node).FromString(n.SerializeToString()) for n in graph.node]
    kept[at : at + 1] = [*inner, *extra]
    del graph.node[:]
    graph.node.extend(kept)


def _rename(node: Any, names: Mapping[str, str]) -> None:
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for i, name in enumerate(node.output):
        node.output[i] = names.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)
