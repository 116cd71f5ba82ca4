"""Which nodes of an ONNX file become TensorRT plugins, and which keep their function, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt import DOMAIN
from plugins_trt.body import nodes_of
from plugins_trt.compile import compiled_kernel
from plugins_trt.dims import Size
from plugins_trt.errors import PluginError, UnsupportedCallError
from plugins_trt.fuse import Fusion, Graph, Left
from plugins_trt.operator import Call, Operator, TensorType
from plugins_trt.quick import ptx_target

if TYPE_CHECKING:
    import onnx

BODY_SUFFIX = "_body"
"""Added to the op_type of a node that keeps its function in a file where others of its kind are plugins."""

NOT_FOR_PLUGINS = ("uint8", "bool")
"""Dtypes that TensorRT's plugins have neither as inputs nor as outputs."""


@dataclass(frozen=True)
class PluginUse:
    """One node that is a plugin now. `digest` is the SHA-256 of the operator's sources."""

    node: str
    operator: str
    inputs: str
    digest: str


@dataclass(frozen=True)
class Refusal:
    """One node that keeps its function, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Plugged:
    """A model for TensorRT's parser, with what became of each node of the domain `edgekit`, of the standard nodes that
    such nodes replaced, and of those that they could not replace."""

    model: onnx.ModelProto
    used: tuple[PluginUse, ...]
    refused: tuple[Refusal, ...]
    fusions: tuple[Fusion, ...] = ()
    left: tuple[Left, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the sources of each operator that is in use, by "edgekit::NAME"."""
        return {f"{DOMAIN}::{use.operator}": use.digest for use in self.used}


def with_plugins(
    model: onnx.ModelProto, operators: Mapping[str, Operator], *, sm: int, fuse: bool = False, compiles: bool = True
) -> Plugged:
    """`model` with its `edgekit` nodes turned into plugins for compute capability `sm`, where their kernels can do it.

    A node becomes a plugin when its operator takes the inputs' types and the kernel compiles for the target; its
    function is dropped, since TensorRT's parser would prefer it. Every other node keeps a function.

    With `fuse`, standard nodes that compute the same become plugins too (see `plugins_trt.fuse`), where the kernel can
    do it; otherwise they stay. Without `compiles` the kernel is only planned, which needs no compiler.

    Raises:
        MissingLibraryError, UnsupportedTargetError: no kernel can be compiled here, or for this target.
    """
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    target = ptx_target(sm) if compiles else sm

    def check(operator: Operator, call: Call) -> None:
        plan = operator.plan(call, tactic=operator.tactics(call, sm)[0], sm=sm)
        if compiles:
            compiled_kernel(operator, plan, sm=target)

    graph = Graph(out, check=check)
    if fuse:
        graph.fuse(operators.values())
    types = graph.types()
    used: list[PluginUse] = []
    refused: list[Refusal] = []
    for node in list(nodes_of(out.graph)):
        if node.domain != DOMAIN or node.op_type not in operators:
            continue
        operator = operators[node.op_type]
        try:
            call = call_of(operator, node, types)
            _check_types(operator, call)
            check(operator, call)
        except PluginError as error:
            refused.append(Refusal(node.name, operator.name, str(error)))
            node.op_type += BODY_SUFFIX
        else:
            inputs = ", ".join(map(str, call.inputs))
            used.append(PluginUse(node.name, operator.name, inputs, operator.digest()))
            _select(node)
    _place_functions(out, {use.operator for use in used}, {refusal.operator for refusal in refused})
    if used and not any(known.domain == DOMAIN for known in out.opset_import):
        out.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return Plugged(out, tuple(used), tuple(refused), tuple(graph.fusions), tuple(graph.left))


def _check_types(operator: Operator, call: Call) -> None:
    """Raise UnsupportedCallError for inputs that TensorRT gives no plugin ("PluginTensorDesc", TensorRT 10)."""
    for port, given in zip(operator.inputs, call.inputs):
        if given.dtype in NOT_FOR_PLUGINS:
            instead = (
                f"give it the same bytes as int8, which {operator.name} takes" if "int8" in port.dtypes else "cast it"
            )
            raise call.refuse(f"TensorRT gives plugins no {given.dtype}, as input '{port.name}' is; {instead}.")


def call_of(operator: Operator, node: onnx.NodeProto, types: Mapping[str, TensorType]) -> Call:
    """The call that `node` is, `types` being those of the model's values.

    Raises:
        UnsupportedCallError: an input of unknown type, or a call that the operator does not take.
    """
    from onnx import helper

    inputs = []
    for index, name in enumerate(node.input):
        if name not in types:
            raise UnsupportedCallError(f"{operator.name}: the type of input {index} ('{name}') is not known.")
        given = types[name]
        shape = tuple(Size(index=index, axis=axis) if isinstance(s, Size) else s for axis, s in enumerate(given.shape))
        inputs.append(TensorType(given.dtype, shape))
    attributes: dict[str, Any] = {}
    known = {attribute.name for attribute in operator.attributes}
    for attribute in node.attribute:
        if attribute.name in known:
            value = helper.get_attribute_value(attribute)
            attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return operator.call(*inputs, **attributes)


def _select(node: onnx.NodeProto) -> None:
    """The attributes by which TensorRT's parser finds the plugin, compiled ahead of time."""
    from onnx import helper

    for name, value in (("plugin_namespace", DOMAIN), ("plugin_version", "1"), ("aot", 1)):
        node.attribute.append(helper.make_attribute(name, value))


def _place_functions(model: onnx.ModelProto, used: set[str], refused: Iterable[str]) -> None:
    """Drop the functions of plugins, and rename those of nodes that keep theirs."""
    functions = list(model.functions)
    del model.functions[:]
    refused = set(refused)
    for function in functions:
        if function.domain == DOMAIN and function.name in refused:
            function.name += BODY_SUFFIX
        elif function.domain == DOMAIN and function.name in used:
            continue
        model.functions.append(function)
