"""An operator's ONNX function: standard operators that compute the same, for every runtime without the plugin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from plugins_trt import DOMAIN
from plugins_trt.errors import PluginError
from plugins_trt.operator import ITEM_BYTES, AttributeValue, Call, Kind, Operator, TensorType

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

OPSET = 18
"""The oldest operator set that functions are written in: PyTorch's exporter's, and one that TensorRT 8.6 to 11 read."""


class Body:
    """Writes the nodes of one function. Values are strings: names of tensors.

    One function serves every node of its operator in a file, so it may depend neither on shapes nor on attributes,
    other than by computing with them.
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.inputs = tuple(port.name for port in operator.inputs)
        self._nodes: list[onnx.NodeProto] = []
        self._returned: tuple[str, ...] = ()

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A standard operator: the name of its output, or a tuple of names if it has several ("" leaves an input out).

        An attribute that is an `Of` takes the value of the function's own attribute.
        """
        from onnx import helper

        names = tuple(f"{op_type.lower()}_{len(self._nodes)}_{i}" for i in range(outputs))
        plain = {name: value for name, value in attributes.items() if not isinstance(value, Of)}
        node = helper.make_node(op_type, list(inputs), list(names), **plain)
        for name, value in attributes.items():
            if isinstance(value, Of):
                node.attribute.append(self._reference(name, value.attribute))
        self._nodes.append(node)
        return names[0] if outputs == 1 else names

    def attribute(self, name: str) -> str:
        """The function's attribute as a tensor: int64 or float32, a scalar or (for a list) of one dimension."""
        value: dict[str, Any] = {f"value_{_KIND_WORD[self._kind(name)]}": Of(name)}
        return str(self.op("Constant", **value))

    def constant(self, value: float | Sequence[float] | NDArray[np.generic], dtype: str = "") -> str:
        """A constant tensor: int64 for ints and float32 for floats, unless `dtype` says otherwise."""
        import numpy as np
        from onnx import numpy_helper

        array = np.asarray(value)
        if dtype:
            array = array.astype(dtype)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        return str(self.op("Constant", value=numpy_helper.from_array(np.ascontiguousarray(array))))

    def cast(self, value: str, dtype: str) -> str:
        """`value` as another dtype, by numpy's name or "bfloat16"."""
        return str(self.op("Cast", value, to=onnx_dtype(dtype)))

    def shape(self, value: str) -> str:
        """The shape of a tensor, int64."""
        return str(self.op("Shape", value))

    def size(self, value: str, axis: int) -> str:
        """One dimension of a tensor, as an int64 tensor of one element."""
        end = {} if axis == -1 else {"end": axis + 1}
        return str(self.op("Shape", value, start=axis, **end))

    def returns(self, *values: str) -> None:
        """The function's outputs, one for each of the operator's."""
        if len(values) != len(self.operator.outputs):
            raise ValueError(f"{self.operator.name} has {len(self.operator.outputs)} outputs, its body {len(values)}")
        self._returned = values

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function as written so far, for models of that operator set."""
        from onnx import helper

        outputs = list(self.operator.outputs)
        nodes = [
            *self._nodes,
            *(helper.make_node("Identity", [value], [name]) for value, name in zip(self._returned, outputs)),
        ]
        return helper.make_function(
            DOMAIN,
            self.operator.name,
            list(self.inputs),
            outputs,
            nodes,
            [helper.make_opsetid("", opset)],
            [attribute.name for attribute in self.operator.attributes],
            doc_string=self.operator.summary,
        )

    def _kind(self, name: str) -> Kind:
        return next(a.kind for a in self.operator.attributes if a.name == name)

    def _reference(self, name: str, attribute: str) -> onnx.AttributeProto:
        import onnx

        kinds = onnx.AttributeProto
        kind = getattr(kinds, _KIND_WORD[self._kind(attribute)].upper())
        return onnx.AttributeProto(name=name, ref_attr_name=attribute, type=kind)


class Of:
    """Stands, in `Body.op`, for the value of the function's own attribute of that name."""

    def __init__(self, attribute: str) -> None:
        self.attribute = attribute


_KIND_WORD = {"int": "int", "float": "float", "str": "string", "ints": "ints", "floats": "floats"}


def onnx_dtype(name: str) -> int:
    """ONNX's number for a dtype."""
    from onnx import TensorProto

    words = {"float32": "FLOAT", "float64": "DOUBLE", "bfloat16": "BFLOAT16", "float16": "FLOAT16"}
    return int(getattr(TensorProto, words.get(name, name.upper())))


def numpy_name(dtype: int) -> str:
    """The name of ONNX's dtype as `TensorType` has it; "" for one that kernels do not have."""
    return next((name for name in ITEM_BYTES if onnx_dtype(name) == dtype), "")


@lru_cache(maxsize=64)
def function_of(operator: Operator, opset: int = OPSET) -> onnx.FunctionProto:
    """The ONNX function of an operator, for models of that operator set."""
    body = Body(operator)
    operator.body(body)
    return body.function(opset)


def node_of(operator: Operator, call: Call, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """The operator's node, with every attribute written out: a function has no defaults."""
    from onnx import helper

    attributes: dict[str, AttributeValue] = dict(call.attributes)
    return helper.make_node(operator.name, list(inputs), list(outputs), domain=DOMAIN, name=operator.name, **attributes)


def add_functions(model: onnx.ModelProto, operators: Sequence[Operator]) -> onnx.ModelProto:
    """`model` with the function of each of `operators` that its nodes use and that it does not have yet.

    Raises:
        PluginError: the model's operator set is too old for the functions.
    """
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    used = {node.op_type for node in nodes_of(out.graph) if node.domain == DOMAIN}
    opset = max((o.version for o in out.opset_import if o.domain in ("", "ai.onnx")), default=OPSET)
    if used and opset < OPSET:
        raise PluginError(
            f"The model's operator set is {opset}, and the functions of {', '.join(sorted(used))} need {OPSET}. "
            "Export it again with a newer one, or convert it with onnx.version_converter."
        )
    present = {function.name for function in out.functions if function.domain == DOMAIN}
    for operator in operators:
        if operator.name in used - present:
            out.functions.append(function_of(operator, opset))
    if used and not any(opset.domain == DOMAIN for opset in out.opset_import):
        out.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return out


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from nodes_of(inner)


def model_of(operator: Operator, call: Call) -> onnx.ModelProto:
    """A model of one node, with its function; a free dimension is called by its port and axis."""
    from onnx import helper

    def value(name: str, given: TensorType) -> onnx.ValueInfoProto:
        shape = [size if isinstance(size, int) else f"{name}_{axis}" for axis, size in enumerate(given.shape)]
        return helper.make_tensor_value_info(name, onnx_dtype(given.dtype), shape)

    inputs = [value(port.name, given) for port, given in zip(operator.inputs, call.inputs)]
    outputs = [value(name, made) for name, made in zip(operator.outputs, operator.output_types(call))]
    node = node_of(operator, call, [i.name for i in inputs], [o.name for o in outputs])
    graph = helper.make_graph([node], operator.name, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return add_functions(model, [operator])
