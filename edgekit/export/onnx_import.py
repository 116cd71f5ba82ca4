"""An existing ONNX file: read, upgraded, cleaned, its batch dimension named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit._lazy import require
from edgekit.errors import ModelError, UnsupportedOperatorError
from edgekit.export.cleanup import drop_initializer_inputs, upgraded
from edgekit.export.legacy import replace_legacy_operators
from edgekit.graphs import (
    EXTERNAL_BYTES,
    infer_shapes,
    load_model,
    model_specs,
    opset_of,
    unknown_operators,
    weight_bytes,
)
from edgekit.tensors import UNNAMED_DIMS

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7

_GENERATED = re.compile(
    r"unk__\d+|N|n|b|B|bs|batch_?size|batch_?dim|dynamic_axes_\d+|.*_dynamic_axes_\d+|\w*batch\w*", re.I
)
"""Names that exporters give to a batch dimension."""


def onnx_from_file(path: Path, *, opset: int | None, limit: int = EXTERNAL_BYTES) -> tuple[onnx.ModelProto, list[str]]:
    """The model in `path`, in operator set `opset` where onnx can convert it (None leaves it), and what was done to it.

    A model with more than `limit` bytes of weights is left in its operator set: the converter cannot take it.

    Raises:
        ModelError: unreadable, older than opset 7, or with inputs or outputs that are not plain tensors.
        UnsupportedOperatorError: it needs operators that no plain runtime has; they are named.
    """
    model = load_model(path)
    legacy = replace_legacy_operators(model)
    check_operators(model, path.name)
    found = opset_of(model)
    if found < OLDEST_OPSET:
        raise ModelError(
            f"'{path.name}' is in operator set {found}; expected {OLDEST_OPSET} or newer. "
            "Export it again with a newer exporter."
        )
    model_specs(model)  # refuses sequences, maps, complex and other types here, by name
    notes = []
    if legacy:
        notes.append("rewritten in standard operators: " + ", ".join(f"{n} {k}" for k, n in legacy.items()))
    if removed := drop_initializer_inputs(model):
        notes.append(f"{removed} initializers are no longer inputs")
    if opset is not None and found < opset:
        small = weight_bytes(model) < limit
        newer = upgraded(model, opset) if small else None
        if newer is None:
            why = f"it could not be converted to {opset}" if small else "it is too large for onnx's converter"
            notes.append(f"kept in operator set {found}: {why}")
        else:
            model = newer
            notes.append(f"converted from operator set {found} to {opset}")
    model.ir_version = max(model.ir_version, 8)
    return model, notes


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Raise UnsupportedOperatorError if `model` has operators that plain runtimes lack."""
    unknown = sorted({operator for operator, _ in unknown_operators(model)})
    if unknown:
        what = "operators" if len(unknown) > 1 else "the operator"
        raise UnsupportedOperatorError(
            f"'{name}' needs {what} {', '.join(unknown)}, which ONNX Runtime and TensorRT do not have. "
            "Cut that part off the model and do its work outside."
        )


def name_batch(model: onnx.ModelProto) -> None:
    """Call the free first dimension of the inputs "batch", in place, where its name says nothing else.

    Other unnamed dimensions get names of their own, so that two of them are not taken for equal.
    """
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            old = dim.dim_param
            nameless = old in UNNAMED_DIMS
            if i == 0 and (nameless or _GENERATED.fullmatch(old)):
                if not nameless:
                    names[old] = "batch"
                dim.dim_param = "batch"
            elif nameless:
                dim.dim_param = f"{value.name}_{i}"
    for value in (*graph.input, *graph.output, *graph.value_info):
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
            elif dim.dim_value <= 0 and dim.dim_param in UNNAMED_DIMS:
                dim.dim_param = f"{value.name}_{i}"
    free_first = [v for v in graph.input if _batched(v)]
    if free_first and graph.input[0].name != free_first[0].name:  # the first input tells the batch
        rest = [v for v in graph.input if v.name != free_first[0].name]
        ordered = [type(v).FromString(v.SerializeToString()) for v in (free_first[0], *rest)]
        del graph.input[:]
        graph.input.extend(ordered)


def _batched(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and not dims[0].HasField("dim_value")


def free_batch(model: onnx.ModelProto, name: str) -> None:
    """Make a batch fixed at 1 free, in place: inputs say "batch", and Reshape copies the dimension instead of naming 1.

    Whether the rest of the graph follows is for the caller to measure.

    Raises:
        ModelError: an input's first dimension is not 1.
    """
    onnx = require("onnx", why="rewrite ONNX models")
    graph = model.graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in infer_shapes(model).graph.value_info}
    shapes.update({v.name: v.type.tensor_type.shape.dim for v in graph.input})
    ones = {n for n, dims in shapes.items() if len(dims) and dims[0].dim_value == 1}
    if not any(v.name in ones for v in graph.input):
        raise ModelError(f"No input of '{name}' has a batch fixed at 1; leave --dynamic-batch out.")
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.input[0] not in ones:
            continue
        target = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
        if target.size and target[0] == 1:
            target[0] = 0
            tensor = onnx.numpy_helper.from_array(target, f"{node.name or node.output[0]}_free_shape")
            graph.initializer.append(tensor)
            node.input[1] = tensor.name
    for value in graph.input:
        if value.name in ones:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dims[0].dim_value == 1:
            dims[0].dim_param = "batch"
    del graph.value_info[:]
