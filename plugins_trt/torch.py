"""The operators in PyTorch: `plugins_trt.torch.layer_norm_residual(x, residual, weight, bias, epsilon=1e-6)`.

Each is a custom operator `torch.ops.edgekit.NAME`, so it traces, is saved in a `.pt2`, and goes into ONNX as the
`edgekit` node with its function: see `onnx_from_torch`. Run eagerly it computes what the kernel would, for checking a
model rather than for speed; it has no gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from plugins_trt import DOMAIN
from plugins_trt.operator import Attribute, Call, Operator, TensorType
from plugins_trt.registry import operator, operators

if TYPE_CHECKING:
    import onnx

_SCHEMA_TYPES = {"int": "int", "float": "float", "str": "str", "ints": "int[]", "floats": "float[]"}


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__") or name not in operators():
        raise AttributeError(f"module 'plugins_trt.torch' has no attribute '{name}'")
    return function(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *operators()])


@cache
def function(name: str) -> Callable[..., Any]:
    """The operator called `name` as a function of tensors and attributes; a tuple if it has several outputs. (Of `lstm`
    the function takes x and PyTorch's parameters: see `plugins_trt.lstm_torch`.)

    It raises plugins_trt.errors.UnsupportedCallError for inputs or attributes that the operator does not take.
    """
    described = operator(name)
    op = _custom_op(described)

    def apply(*tensors: Any, **attributes: Any) -> Any:
        return op(*tensors, **_call(described, tensors, attributes).attributes)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"{described.summary}. Inputs: {', '.join(port.name for port in described.inputs)}."
    return described.in_torch(apply)


def onnx_from_torch(module: Any, *args: Any, **options: Any) -> onnx.ModelProto:
    """`torch.onnx.export(module, *args, dynamo=True, **options)`, with the operators of this package in it as nodes
    that carry their functions."""
    import torch

    table = {**translations(), **options.pop("custom_translation_table", {})}
    program = torch.onnx.export(module, *args, dynamo=True, custom_translation_table=table, **options)
    assert program is not None
    return with_functions(program.model_proto)


def with_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the functions of the operators that its nodes use. See `plugins_trt.body.add_functions`."""
    from plugins_trt.body import add_functions

    return add_functions(model, tuple(operators().values()))


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`: every operator's node, without its function.

    The exporter's optimizer dissolves every function that it sees, so functions are added afterwards, by
    `with_functions`.
    """
    return {_custom_op(op)._opoverload: _translation(op) for op in operators().values()}


def _call(described: Operator, tensors: tuple[Any, ...], attributes: dict[str, Any]) -> Call:
    types = (TensorType(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in tensors)
    return described.call(*types, **attributes)


@cache
def _custom_op(described: Operator) -> Any:
    import torch

    tensors = ", ".join(f"Tensor {port.name}" for port in described.inputs)
    attributes = ", ".join(f"{_SCHEMA_TYPES[a.kind]} {a.name}" for a in described.attributes)
    count = len(described.outputs)
    returned = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
    schema = f"({tensors}{', *, ' if attributes else ''}{attributes}) -> {returned}"

    def eager(*given: Any, **named: Any) -> Any:
        arrays = tuple(_array(tensor) for tensor in given)
        out = described.reference(_call(described, given, named), *arrays)
        made = tuple(_tensor(array).to(given[0].device) for array in out)
        return made[0] if count == 1 else made

    def fake(*given: Any, **named: Any) -> Any:
        types = described.output_types(_call(described, given, named))
        made = tuple(given[0].new_empty(t.shape, dtype=getattr(torch, t.dtype)) for t in types)
        return made[0] if count == 1 else made

    op = torch.library.custom_op(f"{DOMAIN}::{described.name}", eager, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op


def _array(tensor: Any) -> Any:
    """A tensor as numpy; PyTorch has no way for bfloat16 but its bits."""
    import torch

    held = tensor.detach().cpu().contiguous()
    if held.dtype == torch.bfloat16:
        import ml_dtypes

        return held.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return held.numpy()


def _tensor(array: Any) -> Any:
    import numpy as np
    import torch

    held = np.ascontiguousarray(array)
    if held.dtype.name == "bfloat16":
        return torch.from_numpy(held.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(held)


def _translation(described: Operator) -> Callable[..., Any]:
    from onnxscript import values

    op = values.Op(values.Opset(DOMAIN, 1), described.name, _onnx_schema(described))

    def translate(*tensors: Any, **attributes: Any) -> Any:
        return op(*tensors, **attributes)

    tensor, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(port.name, tensor) for port in described.inputs]
    parameters += [inspect.Parameter(a.name, keyword) for a in described.attributes]
    translate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return translate


def _onnx_schema(described: Operator) -> Any:
    import onnx

    schema = onnx.defs.OpSchema
    every = [f"tensor({word})" for word in _DTYPES]
    inputs = [port.name for port in described.inputs]
    ports = [schema.FormalParameter(name, f"T_{name}") for name in inputs]
    outputs = [schema.FormalParameter(name, f"T_{name}") for name in described.outputs]
    constraints = [(f"T_{name}", every, "") for name in [*inputs, *described.outputs]]
    attributes = [_onnx_attribute(attribute) for attribute in described.attributes]
    return schema(
        described.name, DOMAIN, 1, inputs=ports, outputs=outputs, type_constraints=constraints, attributes=attributes
    )


_DTYPES = ("float16", "bfloat16", "float", "double", "int8", "uint8", "int16", "int32", "int64", "bool")


def _onnx_attribute(attribute: Attribute) -> Any:
    import onnx

    schema = onnx.defs.OpSchema
    words = {"int": "INT", "float": "FLOAT", "str": "STRING", "ints": "INTS", "floats": "FLOATS"}
    return schema.Attribute(attribute.name, getattr(schema.AttrType, words[attribute.kind]), required=True)
