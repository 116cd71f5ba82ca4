"""Which nodes of an ONNX file become TensorRT plugins, and which keep their function, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt import DOMAIN
from plugins_trt.body import nodes_of, numpy_name
from plugins_trt.compile import compiled_kernel
from plugins_trt.dims import Dim, Size
from plugins_trt.errors import PluginError, UnsupportedCallError
from plugins_trt.operator import Call, Operator, TensorType
from plugins_trt.quick import ptx_target

if TYPE_CHECKING:
    import onnx

BODY_SUFFIX = "_body"
"""Added to the op_type of a node that keeps its function in a file where others of its kind are plugins."""


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
    """A model for TensorRT's parser, with what became of each node of the domain `edgekit`."""

    model: onnx.ModelProto
    used: tuple[PluginUse, ...]
    refused: tuple[Refusal, ...]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the sources of each operator that is in use, by "edgekit::NAME"."""
        return {f"{DOMAIN}::{use.operator}": use.digest for use in self.used}


def with_plugins(model: onnx.ModelProto, operators: Mapping[str, Operator], *, sm: int) -> Plugged:
    """`model` with its `edgekit` nodes turned into plugins for compute capability `sm`, where their kernels can do it.

    A node becomes a plugin when its operator takes the inputs' types and the kernel compiles for the target; its
    function is dropped, since TensorRT's parser would prefer it. Every other node keeps a function.

    Raises:
        MissingLibraryError, UnsupportedTargetError: no kernel can be compiled here, or for this target.
    """
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    types = _types(out)
    target = ptx_target(sm)
    used: list[PluginUse] = []
    refused: list[Refusal] = []
    for node in list(nodes_of(out.graph)):
        if node.domain != DOMAIN or node.op_type not in operators:
            continue
        operator = operators[node.op_type]
        try:
            call = call_of(operator, node, types)
            plan = operator.plan(call, tactic=operator.tactics(call, sm)[0], sm=sm)
            compiled_kernel(operator, plan, sm=target)
        except PluginError as error:
            refused.append(Refusal(node.name, operator.name, str(error)))
            node.op_type += BODY_SUFFIX
        else:
            inputs = ", ".join(map(str, call.inputs))
            used.append(PluginUse(node.name, operator.name, inputs, operator.digest()))
            _select(node)
    _place_functions(out, {use.operator for use in used}, {refusal.operator for refusal in refused})
    return Plugged(out, tuple(used), tuple(refused))


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


def _types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """The type of every value whose dtype and rank are known; what is free in its shape is a Size."""
    from onnx import shape_inference

    found: dict[str, TensorType] = {}
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dtype = numpy_name(tensor.elem_type)
        if tensor.HasField("shape") and dtype:
            sizes: list[Dim] = [d.dim_value if d.HasField("dim_value") else Size() for d in tensor.shape.dim]
            found[value.name] = TensorType(dtype, tuple(sizes))
    for weight in graph.initializer:
        dtype = numpy_name(weight.data_type)
        if dtype:
            found[weight.name] = TensorType(dtype, tuple(weight.dims))
    return found


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
