"""Finds what the operators can stand for in an ONNX file made of standard operators, and puts their nodes there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt.body import OPSET, add_functions, node_of, numpy_name
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.operator import Operator, TensorType

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fusion:
    """One place where `operator` stands now for the nodes that are gone."""

    operator: str
    nodes: tuple[str, ...]


class Graph:
    """The main graph of a model, as patterns are looked for in it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import shape_inference

        self.model = model
        self.fusions: list[Fusion] = []
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self._dtypes: dict[str, str] = {}
        self._shapes: dict[str, tuple[int | str, ...]] = {}
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self._dtypes[value.name] = numpy_name(tensor.elem_type)
            if tensor.HasField("shape"):
                sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
                self._shapes[value.name] = tuple(s if s != "" else f"{value.name} {i}" for i, s in enumerate(sizes))
        for weight in graph.initializer:
            self._dtypes[weight.name] = numpy_name(weight.data_type)
            self._shapes[weight.name] = tuple(weight.dims)

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        """The standard nodes of one kind that are there now."""
        return [n for n in self.model.graph.node if n.op_type == op_type and n.domain in ("", "ai.onnx")]

    def dtype(self, name: str) -> str:
        """The dtype of a value; "" if it is not known, or none of the kernels'."""
        return self._dtypes.get(name, "")

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """The shape of a value, a free dimension by its name; None if its rank is not known."""
        return self._shapes.get(name)

    def producer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of that kind."""
        return next((n for n in self.nodes(op_type) if name in n.output), None)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that take a value, once for each input."""
        return [n for n in self.model.graph.node for given in n.input if given == name]

    def leaves(self, name: str) -> bool:
        """Whether a value is an output of the graph, or used by a graph inside a node."""
        if any(output.name == name for output in self.model.graph.output):
            return True
        inner = [a.g for n in self.model.graph.node for a in n.attribute if a.HasField("g")]
        return any(name in node.input for graph in inner for node in graph.node)

    def follower(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The one node that takes a value, if it is of that kind and nothing else needs the value."""
        users = self.users(name)
        fits = len(users) == 1 and users[0].op_type == op_type and users[0].domain in ("", "ai.onnx")
        return users[0] if fits and not self.leaves(name) else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer or of a Constant node."""
        from onnx import numpy_helper

        for weight in self.model.graph.initializer:
            if weight.name == name:
                held: NDArray[Any] = numpy_helper.to_array(weight)
                return held
        node = self.producer(name, "Constant")
        for attribute in node.attribute if node is not None else ():
            if attribute.name == "value":
                value: NDArray[Any] = numpy_helper.to_array(attribute.t)
                return value
        return None

    def add_constant(self, like: str, array: NDArray[np.generic]) -> str:
        """A new initializer, named after the value that it stands for."""
        from onnx import numpy_helper

        taken = {weight.name for weight in self.model.graph.initializer}
        name = next(n for i in range(len(taken) + 1) if (n := f"{like}_plugin{i or ''}") not in taken)
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        self._dtypes[name], self._shapes[name] = array.dtype.name, array.shape
        return name

    def replace(
        self,
        operator: Operator,
        old: Sequence[onnx.NodeProto],
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: Any,
    ) -> None:
        """Put a node of `operator` where the nodes `old` are, unless the operator does not take such a call."""
        types = (TensorType(self.dtype(name), self._sizes(name)) for name in inputs)
        try:
            call = operator.call(*types, **attributes)
        except UnsupportedCallError:
            return
        node = node_of(operator, call, inputs, outputs)
        node.name = old[-1].name or f"{operator.name}_{len(self.fusions)}"
        self.fusions.append(Fusion(operator.name, tuple(n.name or n.op_type for n in old)))
        for gone in old:
            self.model.graph.node.remove(gone)
        self.model.graph.node.append(node)
        self._sort()

    def unneeded(self) -> set[str]:
        """Initializers that nothing takes, and values of nodes none of whose values anything takes."""
        graph = self.model.graph
        needed = {name for node in graph.node for name in _needs(node)} | {output.name for output in graph.output}
        idle = {name for node in graph.node if not needed & set(node.output) for name in node.output}
        return idle | {weight.name for weight in graph.initializer if weight.name not in needed}

    def prune(self, keep: set[str]) -> None:
        """Drop what is not needed any more, but for the values `keep`."""
        graph = self.model.graph
        while gone := self.unneeded() - keep:
            for node in [n for n in graph.node if gone & set(n.output)]:
                graph.node.remove(node)
            for weight in [w for w in graph.initializer if w.name in gone]:
                graph.initializer.remove(weight)

    def _sizes(self, name: str) -> tuple[Any, ...]:
        return tuple(s if isinstance(s, int) else Size() for s in self._shapes[name])

    def _sort(self) -> None:
        """Bring the nodes into an order in which each comes after what it needs."""
        waiting = list(self.model.graph.node)
        made = {output for node in waiting for output in node.output}
        done: set[str] = set()
        ordered: list[onnx.NodeProto] = []
        while waiting:
            ready = [n for n in waiting if all(i in done or i not in made for i in _needs(n))]
            ordered += ready
            done.update(output for node in ready for output in node.output)
            waiting = [n for n in waiting if not any(n is r for r in ready)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(ordered)


def _needs(node: onnx.NodeProto) -> set[str]:
    needed = set(node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            needed.update(name for child in inner.node for name in _needs(child))
    return needed


def fused(model: onnx.ModelProto, operators: Iterable[Operator]) -> tuple[onnx.ModelProto, tuple[Fusion, ...]]:
    """`model` with nodes of `operators` wherever they compute the same as what was there, and what was found.

    The nodes carry their functions, so the file still runs everywhere. A model whose operator set is older than the
    functions' stays as it is.
    """
    import onnx

    operators = tuple(operators)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = Graph(out)
    if graph.opset < OPSET:
        return out, ()
    idle = graph.unneeded()
    for operator in operators:
        operator.fuse(graph)
    graph.prune(idle)
    return add_functions(out, operators), tuple(graph.fusions)
