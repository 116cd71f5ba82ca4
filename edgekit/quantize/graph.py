"""A graph that can be rewritten: producers, consumers and constants of an ONNX model by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.errors import ModelError
from edgekit.graphs import subgraphs
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx


class Graph:
    """A private copy of a model, edited in place. `model()` gives the result, sorted and without dead weights.

    Only the main graph is rewritten; tensors that control-flow bodies read are in `captured`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        onnx = require("onnx", why="quantize models")
        self._onnx = onnx
        self._model = type(model)()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self.nodes: list[Any] = list(graph.node)
        self.constants: dict[str, Array] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self._kept = {t.name: t for t in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.constants]
        self.outputs = [v.name for v in graph.output]
        self.captured = _captured(graph)
        self._names = {n.name for n in self.nodes} | set(self.constants) | set(self.inputs)
        self._names.update(o for n in self.nodes for o in n.output)
        self._names.update(o for g in subgraphs(graph) for n in g.node for o in (*n.output, *n.input))
        self.refresh()

    def refresh(self) -> None:
        """Bring `producer` and `consumers` up to date after edits."""
        self.producer: dict[str, Any] = {o: n for n in self.nodes for o in n.output if o}
        self.consumers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append((node, i))

    def fresh(self, base: str) -> str:
        """A name that nothing in the graph has yet, close to `base`."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def constant(self, base: str, value: Array) -> str:
        """Add `value` as an initializer and return its name."""
        name = self.fresh(base)
        self.constants[name] = np.asarray(value)
        return name

    def set_constant(self, name: str, value: Array) -> None:
        """Give the initializer `name` another value."""
        self.constants[name] = value
        self._kept.pop(name, None)

    def node(
        self, op: str, inputs: Iterable[str], outputs: Iterable[str], *, domain: str = "", **attributes: Any
    ) -> Any:
        """Add a node and return it. Attributes that are None are left out."""
        given = {k: v for k, v in attributes.items() if v is not None}
        outs = list(outputs)
        node = self._onnx.helper.make_node(
            op, list(inputs), outs, name=self.fresh(f"{outs[0]}_{op}"), domain=domain, **given
        )
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Take `node` out."""
        self.nodes = [n for n in self.nodes if n is not node]

    def is_float(self, name: str) -> bool:
        """Whether the constant `name` is a 32-bit float."""
        return name in self.constants and self.constants[name].dtype == np.float32

    def only_use(self, name: str) -> Any | None:
        """The one node that reads `name`, or None if several do, or an output or a control-flow body does."""
        uses = self.consumers.get(name, [])
        if len(uses) != 1 or name in self.outputs or name in self.captured:
            return None
        return uses[0][0]

    def model(self) -> onnx.ModelProto:
        """The rewritten model."""
        graph = self._model.graph
        nodes = self._live(self._sorted())
        used = {i for n in nodes for i in n.input} | set(self.outputs) | _captured_of(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.initializer[:]
        for name, value in self.constants.items():
            if name in used:
                kept = self._kept.get(name)
                graph.initializer.append(kept if kept is not None else self._onnx.numpy_helper.from_array(value, name))
        inputs = [v for v in graph.input if v.name in self.inputs]
        del graph.input[:]
        graph.input.extend(inputs)
        produced = {o for n in nodes for o in n.output}
        infos = [v for v in graph.value_info if v.name in produced]
        del graph.value_info[:]
        graph.value_info.extend(infos)
        return self._model

    def set_opset(self, domain: str, version: int) -> None:
        """Import `domain` at `version`, unless the model imports it already."""
        if all(o.domain != domain for o in self._model.opset_import):
            self._model.opset_import.append(self._onnx.helper.make_opsetid(domain, version))

    def _sorted(self) -> list[Any]:
        known = set(self.constants) | set(self.inputs) | {""}
        made = self.producer_names()
        waiting, out = list(self.nodes), []
        while waiting:
            later = []
            for node in waiting:
                reads = set(node.input) | (_captured_of([node]) & made)
                if reads <= known:
                    out.append(node)
                    known.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise ModelError(f"The graph reads '{later[0].input[0]}', which nothing produces. Export it again.")
            waiting = later
        return out

    def producer_names(self) -> set[str]:
        """Names of all tensors that nodes produce."""
        return {o for n in self.nodes for o in n.output}

    def _live(self, nodes: list[Any]) -> list[Any]:
        needed, out = set(self.outputs), []
        for node in reversed(nodes):
            if any(o in needed for o in node.output):
                out.append(node)
                needed.update(node.input)
                needed |= _captured_of([node])
        return out[::-1]


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default`."""
    for a in node.attribute:
        if a.name == name:
            value = require("onnx", why="quantize models").helper.get_attribute_value(a)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _captured_of(nodes: Iterable[Any]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        for a in node.attribute:
            for inner in (a.g, *a.graphs):
                if inner.node or inner.output:
                    names.update(i for g in subgraphs(inner) for n in g.node for i in n.input)
                    names.update(o.name for g in subgraphs(inner) for o in g.output)
    return names


def _captured(graph: Any) -> set[str]:
    return _captured_of(graph.node)
