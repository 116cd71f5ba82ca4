"""Finds what the operators can stand for in an ONNX file made of standard operators, and puts their nodes there."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt.body import OPSET, add_functions, node_of, numpy_name
from plugins_trt.dims import Size
from plugins_trt.errors import PluginError
from plugins_trt.operator import Call, Operator, TensorType

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray


OLDEST_OPSET = 15
"""The oldest operator set whose nodes the patterns are written in terms of, and write themselves."""

Check = Callable[[Operator, Call], None]
"""Raises PluginError for a call that the operator's kernel cannot do."""


@dataclass(frozen=True)
class Fusion:
    """One place where a `node` of `operator` stands now for the nodes that are gone."""

    operator: str
    nodes: tuple[str, ...]
    node: str = ""


@dataclass(frozen=True)
class Left:
    """One place where `operator` nearly fits, and why the nodes stay: `node` is the last of them."""

    operator: str
    node: str
    reason: str


@dataclass(frozen=True)
class _Index:
    makers: dict[str, onnx.NodeProto]
    takers: dict[str, list[onnx.NodeProto]]
    leaving: set[str]
    """Outputs of the graph, and values that a graph inside a node takes."""


class Graph:
    """The main graph of a model, as patterns are looked for in it. `finish` puts what was changed into the model."""

    def __init__(self, model: onnx.ModelProto, *, check: Check | None = None) -> None:
        self.model = model
        self.fusions: list[Fusion] = []
        self.left: list[Left] = []
        self._check = check
        self._nodes = list(model.graph.node)
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._index: _Index | None = None
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self._dtypes: dict[str, str] = {}
        self._shapes: dict[str, tuple[int | str, ...]] = {}
        graph = _inferred(model)
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self._dtypes[value.name] = numpy_name(tensor.elem_type)
            if tensor.HasField("shape"):
                sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
                self._shapes[value.name] = tuple(s if s != "" else f"{value.name} {i}" for i, s in enumerate(sizes))
        for weight in graph.initializer:
            self._dtypes[weight.name] = numpy_name(weight.data_type)
            self._shapes[weight.name] = tuple(weight.dims)

    @property
    def for_kernels(self) -> bool:
        """Whether what is put in runs as a kernel: what its kernel cannot do is not put in."""
        return self._check is not None

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        """The standard nodes of one kind that are there now."""
        return [n for n in self._nodes if _is(n, op_type)]

    def dtype(self, name: str) -> str:
        """The dtype of a value; "" if it is not known, or none of the kernels'."""
        return self._dtypes.get(name, "")

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """The shape of a value, a free dimension by its name; None if its rank is not known."""
        return self._shapes.get(name)

    def set_shape(self, name: str, shape: tuple[int | str, ...]) -> None:
        """Say what is known of a value's shape for another reason."""
        self._shapes[name] = shape

    def producer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of that kind."""
        node = self._indexed().makers.get(name) if name else None
        return node if node is not None and _is(node, op_type) else None

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that take a value, once for each input."""
        return list(self._indexed().takers.get(name, ()))

    def leaves(self, name: str) -> bool:
        """Whether a value is an output of the graph, or used by a graph inside a node."""
        return name in self._indexed().leaving

    def follower(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The one node that takes a value, if it is of that kind and nothing else needs the value."""
        users = self.users(name)
        return users[0] if len(users) == 1 and _is(users[0], op_type) and not self.leaves(name) else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer or of a Constant node, also through an Identity (exporters share weights so)."""
        from onnx import numpy_helper

        if name in self._weights:
            held: NDArray[Any] = numpy_helper.to_array(self._weights[name])
            return held
        same = self.producer(name, "Identity")
        if same is not None:
            return self.constant(same.input[0])
        node = self.producer(name, "Constant")
        for attribute in node.attribute if node is not None else ():
            if attribute.name == "value":
                value: NDArray[Any] = numpy_helper.to_array(attribute.t)
                return value
        return None

    def add_constant(self, like: str, array: NDArray[np.generic]) -> str:
        """A new initializer, named after the value that it stands for."""
        from onnx import numpy_helper

        name = self.new_name(f"{like}_plugin")
        self._weights[name] = numpy_helper.from_array(array, name)
        self._dtypes[name], self._shapes[name] = array.dtype.name, array.shape
        return name

    def add_node(
        self,
        op_type: str,
        inputs: Sequence[str],
        dtype: str,
        shape: tuple[int | str, ...],
        *,
        output: str = "",
        **attributes: Any,
    ) -> str:
        """A new standard node with one output, of that dtype and shape: its name."""
        from onnx import helper

        made = output or self.new_name(f"{inputs[0]}_{op_type.lower()}")
        self._nodes.append(helper.make_node(op_type, list(inputs), [made], name=self.new_name(made), **attributes))
        self._dtypes[made], self._shapes[made] = dtype, shape
        self._index = None
        return made

    def new_name(self, like: str) -> str:
        """`like`, or if there is a value of that name, `like` and a number."""
        makers = self._indexed().makers
        names = (f"{like}{i or ''}" for i in itertools.count())
        return next(name for name in names if name not in makers and name not in self._dtypes)

    def replace(
        self,
        operator: Operator,
        old: Sequence[onnx.NodeProto],
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: Any,
    ) -> bool:
        """Put a node of `operator` where the nodes `old` are; False if it, or its kernel, cannot do the call."""
        types = (TensorType(self.dtype(name), self._sizes(name, index)) for index, name in enumerate(inputs))
        try:
            call = operator.call(*types, **attributes)
            if self._check is not None:
                self._check(operator, call)
        except PluginError as error:
            self.leave(operator, old[-1], str(error))
            return False
        node = node_of(operator, call, inputs, outputs)
        node.name = old[-1].name or f"{operator.name}_{len(self.fusions)}"
        self.fusions.append(Fusion(operator.name, tuple(n.name or n.op_type for n in old), node.name))
        gone = {id(n) for n in old}
        self._nodes = [n for n in self._nodes if id(n) not in gone]
        self._nodes.append(node)
        for name, made in zip(outputs, operator.output_types(call)):
            sizes = tuple(s if isinstance(s, int) else f"{name} {axis}" for axis, s in enumerate(made.shape))
            self._dtypes.setdefault(name, made.dtype)
            self._shapes.setdefault(name, sizes)
        self._index = None
        return True

    def leave(self, operator: Operator, node: onnx.NodeProto, reason: str) -> None:
        """Say why `node`, which nearly is what `operator` does, stays as it is."""
        self.left.append(Left(operator.name, node.name or node.op_type, reason))

    def fuse(self, operators: Iterable[Operator]) -> None:
        """Let every operator put its nodes into the model, unless its operator set is older than `OLDEST_OPSET`.

        Raises:
            PluginError: the search of an operator fails.
        """
        if self.opset < OLDEST_OPSET:
            return
        idle = self.unneeded()
        for operator in operators:
            try:
                operator.fuse(self)
            except Exception as error:
                raise PluginError(f"{operator.name}: its fuse() fails with {type(error).__name__}: {error}") from error
        if self.fusions:
            self._prune(idle)
            self._finish()

    def types(self) -> dict[str, TensorType]:
        """The type of every value whose dtype and rank are known; what is free in its shape is a Size."""
        return {n: TensorType(self._dtypes[n], self._sizes(n)) for n in self._shapes if self._dtypes[n]}

    def unneeded(self) -> set[str]:
        """Initializers that nothing takes, and values of nodes none of whose values anything takes."""
        needed = {name for node in self._nodes for name in _needs(node)} | {o.name for o in self.model.graph.output}
        idle = {name for node in self._nodes if not needed & set(node.output) for name in node.output}
        return idle | {name for name in self._weights if name not in needed}

    def _indexed(self) -> _Index:
        if self._index is None:
            makers = {name: node for node in self._nodes for name in node.output if name}
            takers: dict[str, list[onnx.NodeProto]] = {}
            leaving = {output.name for output in self.model.graph.output}
            for node in self._nodes:
                for name in node.input:
                    takers.setdefault(name, []).append(node)
                leaving |= _needs(node) - set(node.input)
            self._index = _Index(makers, takers, leaving)
        return self._index

    def _prune(self, keep: set[str]) -> None:
        """Drop what is not needed any more, but for the values `keep`."""
        while gone := self.unneeded() - keep:
            self._nodes = [n for n in self._nodes if not gone & set(n.output)]
            self._weights = {name: weight for name, weight in self._weights.items() if name not in gone}

    def _sizes(self, name: str, index: int = 0) -> tuple[Any, ...]:
        shape = self._shapes.get(name, ())
        return tuple(s if isinstance(s, int) else Size(index=index, axis=axis) for axis, s in enumerate(shape))

    def _finish(self) -> None:
        """Put nodes and weights into the model, each node after what it needs and otherwise as they were."""
        graph = self.model.graph
        place = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        needs = [{place[name] for name in _needs(node) if name in place} for node in self._nodes]
        followers: list[list[int]] = [[] for _ in self._nodes]
        for at, before in enumerate(needs):
            for other in before:
                followers[other].append(at)
        ready = [at for at, before in enumerate(needs) if not before]
        order: list[int] = []
        heapq.heapify(ready)
        while ready:
            at = heapq.heappop(ready)
            order.append(at)
            for other in followers[at]:
                needs[other].discard(at)
                if not needs[other]:
                    heapq.heappush(ready, other)
        ordered = [self._nodes[at] for at in order]
        kept, weights = list(graph.value_info), list(self._weights.values())
        made = {name for node in ordered for name in node.output}
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(ordered)
        graph.initializer.extend(weights)
        graph.value_info.extend(value for value in kept if value.name in made)


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with what can be inferred of its values, large weights without their data; as it is if nothing can."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    given, graph = model.graph, light.graph
    graph.name = given.name
    graph.node.extend(given.node)
    for node in graph.node:
        if _is(node, "GroupNormalization"):  # which has no inference of its own, and gives what it takes
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    graph.input.extend(given.input)
    graph.output.extend(given.output)
    graph.value_info.extend(given.value_info)
    for weight in given.initializer:
        if len(weight.raw_data) <= _SMALL:
            graph.initializer.append(weight)
        else:
            graph.initializer.append(onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims))
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # a node that the inference does not understand; what the file says of its values remains
        return graph


_SMALL = 4096
"""Bytes of a weight up to which its values may decide a shape."""


def _is(node: onnx.NodeProto, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in ("", "ai.onnx")


def _needs(node: onnx.NodeProto) -> set[str]:
    needed = set(node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            needed.update(name for child in inner.node for name in _needs(child))
            needed.update(output.name for output in inner.output)
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
    if graph.opset >= OPSET:
        graph.fuse(operators)
    return add_functions(out, operators), tuple(graph.fusions)
