"""Puts every operator through NVIDIA's own quick-plugin code, and prints what came out as JSON.

A process of its own, since `tensorrt` can be loaded once: `python -m tests.plugins_trt.nvidia`. TensorRT's compiled
part cannot make shape expressions without a network that holds the plugin, so those are computed by `Expression` here;
the descriptors, their algebra, the checks of signatures and the plugin classes are NVIDIA's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from plugins_trt.dims import OPERATIONS, Size
from plugins_trt.operator import Call, Operator, TensorType
from plugins_trt.quick import DTYPE_WORDS, register
from plugins_trt.registry import operators
from tests.engine.bindings import load_bindings

SM = 87
INDEX = 1
"""Which of its small examples each operator is asked about."""


def load_tensorrt() -> Any:
    """NVIDIA's `tensorrt` package, its compiled part on stand-in libraries; its Python parts are the real ones."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    trt = load_bindings(root / "tensorrt.so")
    trt.__path__ = [str(root)]
    sys.modules["tensorrt"] = trt
    return trt


def free_first(call: Call) -> tuple[TensorType, ...]:
    """The inputs of `call` with the first dimension of the first one free, and what shares its size at axis 0."""
    batch = call.inputs[0].shape[0]
    free = Size(index=0, axis=0)
    return tuple(
        TensorType(t.dtype, (free, *t.shape[1:])) if len(t.shape) > 1 and t.shape[0] == batch else t
        for t in call.inputs
    )


def main() -> None:
    """One JSON document: for each operator what its plugin says, and what its plan says."""
    trt = load_tensorrt()
    import tensorrt.plugin as trtp
    from tensorrt.plugin._lib import QDP_REGISTRY
    from tensorrt.plugin._tensor import SymIntExpr

    names = {getattr(trt.DataType, member): name for name, (member, _) in DTYPE_WORDS.items()}

    words = {
        trt.DimensionOperation.SUM: "+",
        trt.DimensionOperation.SUB: "-",
        trt.DimensionOperation.PROD: "*",
        trt.DimensionOperation.FLOOR_DIV: "//",
        trt.DimensionOperation.CEIL_DIV: "ceil_div",
        trt.DimensionOperation.MAX: "max",
        trt.DimensionOperation.MIN: "min",
    }

    class Expression(trt.IDimensionExpr):  # type: ignore[misc,name-defined]
        """A dimension whose value is known here, and is said not to be where it is free."""

        @staticmethod
        def of(value: int, free: bool = False) -> Expression:
            made = Expression.__new__(Expression)  # its constructor is TensorRT's alone
            made.value, made.free = value, free
            return made

        def is_constant(self) -> bool:
            return not self.free

        def get_constant_value(self) -> int:
            return int(self.value)

    class Builder:
        """Computes where TensorRT would write down an expression."""

        def constant(self, value: int) -> Expression:
            return Expression.of(value)

        def operation(self, operation: Any, left: Expression, right: Expression) -> Expression:
            value = OPERATIONS[words[operation]](left.value, right.value)
            return Expression.of(value, left.free or right.free)

    def described(given: TensorType, sizes: tuple[int, ...]) -> Any:
        """NVIDIA's descriptor of one tensor, as an engine's build gives it to a plugin."""
        desc = trtp.TensorDesc()
        desc.dtype = getattr(trt.DataType, DTYPE_WORDS[given.dtype][0])
        free = [isinstance(size, Size) for size in given.shape]
        exprs = [trtp.ShapeExpr(Expression.of(s, f)) for s, f in zip(sizes, free)]
        desc.shape_expr = trtp.ShapeExprs.from_tuple(tuple(exprs))
        desc.shape = trtp.Shape(tuple(-1 if f else s for s, f in zip(sizes, free)))
        desc.format = trt.TensorFormat.LINEAR
        desc._immutable = True
        return desc

    def plugin_of(operator: Operator, call: Call) -> Any:
        """The plugin that the ONNX parser would make of a node."""
        kinds = trt.PluginFieldType
        fields = []
        for attribute in operator.attributes:
            value: Any = call.attributes[attribute.name]
            if attribute.kind == "str":
                fields.append(trt.PluginField(attribute.name, value.encode(), kinds.CHAR))
                continue
            integer = attribute.kind.startswith("int")
            array = np.atleast_1d(np.array(value, np.int64 if integer else np.float64))
            fields.append(trt.PluginField(attribute.name, array, kinds.INT64 if integer else kinds.FLOAT64))
        creator = trt.get_plugin_registry().get_creator(operator.name, "1", operator.domain)
        request = trt.QuickPluginCreationRequest.STRICT_AOT
        collection = trt.PluginFieldCollection(fields)
        return creator.create_plugin(operator.name, operator.domain, collection, trt.TensorRTPhase.BUILD, request)

    ids = register(trt, operators().values(), sm=SM)
    again = register(trt, operators().values(), sm=SM)
    seen = {}
    for operator in operators().values():
        call = operator.small_examples()[INDEX]
        plugin = plugin_of(operator, call)
        data_types = [getattr(trt.DataType, DTYPE_WORDS[t.dtype][0]) for t in call.inputs]
        dtypes = [names[t] for t in plugin.get_output_data_types(data_types, [len(t.shape) for t in call.inputs])]
        definition = QDP_REGISTRY[f"{operator.domain}::{operator.name}"]
        launches = []
        for inputs in (call.inputs, free_first(call)):
            SymIntExpr._exprBuilder = Builder()
            sizes = [t.sizes for t in call.inputs]
            descs = [described(t, s) for t, s in zip(inputs, sizes)]
            values = list(plugin.attrs.values())
            outputs = definition.register_func(*descs, **plugin.attrs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            shapes = [[e._expr.value for e in out.shape_expr] for out in outputs]
            combinations = definition.autotune_func(*descs, *values, outputs)
            found = [(c.types, c.tactics) for one in combinations for c in one._get_combinations()]
            tactic = found[0][1][0]
            entry, ptx, launch, scalars = definition.aot_impl_func(*descs, *values, outputs, tactic)
            grid = [getattr(launch, f"grid_{axis}")._expr.value for axis in "xyz"]
            block = [getattr(launch, f"block_{axis}")._expr.value for axis in "xyz"]
            launches.append(
                {
                    "shapes": shapes,
                    "types": [[names[t] for t in types] for types, _ in found],
                    "tactics": list(found[0][1]),
                    "tactic": tactic,
                    "entry": entry,
                    "ptx_target": ptx.partition(".target ")[2].split()[0],
                    "has_entry": f".entry {entry}(" in ptx,
                    "grid": grid,
                    "block": block,
                    "shared": launch.shared_mem._expr.value,
                    "scalars": [s._expr.value for s in scalars],
                    "checked": [isinstance(launch, trtp.KernelLaunchParams), isinstance(scalars, trtp.SymExprs)],
                }
            )
            SymIntExpr._exprBuilder = None
        seen[operator.name] = {"plugin": type(plugin).__name__, "dtypes": dtypes, "launches": launches}
    print(json.dumps({"ids": ids, "again": again, "operators": seen}))


if __name__ == "__main__":
    main()
