"""PyTorch to ONNX, through `torch.export` and `torch.onnx.export(dynamo=True)`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require
from edgekit.errors import ModelError, UsageError
from edgekit.export import recurrent
from edgekit.export.torch_runner import TorchRunner, quiet
from edgekit.tensors import Feed, TensorSpec

if TYPE_CHECKING:
    import onnx

DEFAULT_OPSET = 18
"""The operator set that the exporter's translations are written in (newer ones are converted from it); ONNX Runtime
1.14+ and the parsers of TensorRT 8.6 to 11 read it."""

MODULE_KEY = "pkg.torch.onnx.name_scopes"
"""Node metadata: the names of the PyTorch modules around the node, as the text of a list."""


def program_from_torch(runner: TorchRunner, example: Feed) -> Any:
    """Trace the module of `runner` into a `torch.export.ExportedProgram` whose named dimensions are free.

    `example` has at least two along each named dimension.

    Raises:
        ModelError: PyTorch cannot trace the module.
        UsageError: the module fixes a dimension that its recipe names.
    """
    torch = require("torch", why="export models")
    args, kwargs = runner.arguments(example)
    if isinstance(runner.module, torch.export.ExportedProgram):
        return runner.module
    first: Exception | None = None
    for exact in (True, False):
        shapes = _dynamic_shapes(runner.inputs, exact=exact)
        given: Any = shapes if runner.keywords else _by_position(runner.module, tuple(shapes.values()))
        try:
            with quiet(), torch.no_grad(), recurrent.any_length():
                return torch.export.export(runner.module, args, kwargs, dynamic_shapes=given, strict=False)
        except Exception as error:  # torch.export raises a dozen classes that share only Exception
            if "onstraint" not in str(error):  # "Constraints violated": sizes of one name that depend on another
                raise _trace_error(runner, first or error) from error
            first = first or error
    assert first is not None
    raise _trace_error(runner, first) from first


def _dynamic_shapes(inputs: Sequence[TensorSpec], *, exact: bool) -> dict[str, dict[int, Any]]:
    """Named dimensions for torch.export: `exact` as given, else free with relations found by tracing."""
    dim = require("torch.export", why="export models").Dim
    made: dict[str, Any] = {}
    out: dict[str, dict[int, Any]] = {}
    for spec in inputs:
        free: dict[int, Any] = {}
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                if name not in made:
                    made[name] = dim(f"d{len(made)}_{re.sub(r'[^0-9A-Za-z_]', '_', name)}") if exact else dim.DYNAMIC
                free[axis] = made[name]
        out[spec.name] = free
    return out


def _by_position(module: Any, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """`shapes` as forward() takes its arguments: those that land in *args (Keras's models) are a tuple of their own."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds[: len(shapes)]:
        return shapes
    own = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:own], shapes[own:])


def _trace_error(runner: TorchRunner, error: Exception) -> ModelError | UsageError:
    text = str(error)
    fixed = re.search(r"marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    if fixed:
        where, size = re.sub(r"^d\d+_", "", fixed[1]), fixed[2]
        return UsageError(
            f"The model of '{runner.model}' works for one size of '{where}' only ({size} was tried). "
            "Write its shapes from the input's (x.shape[0] rather than len(x), flatten(1)), or export with --static."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = (lines[0] if lines else type(error).__name__)[:300]
    return ModelError(
        f"PyTorch cannot trace the model of '{runner.model}': {detail.rstrip('.')}. "
        "Make its forward() free of data-dependent Python, or give an .onnx file."
    )


def onnx_from_program(program: Any, runner: TorchRunner, *, opset: int) -> onnx.ModelProto:
    """Translate a traced program; inputs, outputs and free dimensions carry the names of `runner`.

    Raises:
        ModelError: an operator has no ONNX form, or the opset cannot be reached.
    """
    torch_onnx = require("torch.onnx", why="export models")
    require("onnxscript", why="export models")
    try:
        with quiet(), recurrent.any_length():
            plugins = _plugins_in(program)
            table = {**recurrent.translations(), **(plugins.translations() if plugins else {})}
            result = torch_onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                custom_translation_table=table,
            )
            scopes = _scopes_by_weight(result.model)
            result.optimize()
            model: onnx.ModelProto = result.model_proto
            if plugins:
                model = plugins.with_functions(model)
    except Exception as error:  # torch.onnx.errors and whatever a translation raises
        raise _translation_error(runner, error) from error
    _name_ends(model, runner)
    _name_dimensions(model, runner.inputs)
    _keep_module_names(model, scopes)
    return model


def _plugins_in(program: Any) -> Any:
    """The module `plugins_trt.torch`, if `program` has operators of it."""
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return (
        require("plugins_trt.torch", why="export its operators")
        if any(target.startswith("edgekit.") for target in targets)
        else None
    )


def _translation_error(runner: TorchRunner, error: Exception) -> ModelError:
    chain: list[str] = []
    step: BaseException | None = error
    while step is not None:
        chain.append(str(step))
        step = step.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", "\n".join(chain))
    if missing:
        return ModelError(
            f"Operator {missing[1]} in the model of '{runner.model}' has no ONNX form. "
            "Replace it in the module by standard operators."
        )
    lines = [line.strip() for line in chain[-1].splitlines() if line.strip()] or [type(error).__name__]
    return ModelError(f"The model of '{runner.model}' cannot be translated to ONNX: {lines[0][:300]}")


def _scopes_by_weight(model: Any) -> dict[str, str]:
    """Weight name -> module scopes of the node that uses it, before BatchNorm folding blurs them."""
    out: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and MODULE_KEY in node.metadata_props:
            for value in node.inputs[1:2]:
                if value is not None and value.name:
                    out.setdefault(value.name, node.metadata_props[MODULE_KEY])
    return out


def _name_ends(model: onnx.ModelProto, runner: TorchRunner) -> None:
    """Give graph inputs and outputs the names of the recipe; inner tensors in their way are moved aside."""
    graph = model.graph
    inputs, outputs = list(graph.input), list(graph.output)
    if len(inputs) != len(runner.inputs) or len(outputs) != len(runner.names):
        raise ModelError(
            f"The ONNX form of '{runner.model}' has {len(inputs)} inputs and {len(outputs)} outputs; "
            f"expected {len(runner.inputs)} and {len(runner.names)}."
        )
    order = [s.name for s in runner.inputs]
    if runner.keywords and {i.name for i in inputs} == set(order):
        inputs.sort(key=lambda v: order.index(v.name))
        inputs = [type(v).FromString(v.SerializeToString()) for v in inputs]
        del graph.input[:]
        graph.input.extend(inputs)
    fixed = {v.name for v in (*inputs, *graph.initializer)}
    for value in outputs:  # an output that is an input, a weight or another output needs a tensor of its own
        if value.name in fixed:
            own = f"{value.name}_as_output_{len(graph.node)}"
            graph.node.add(op_type="Identity", input=[value.name], output=[own], name=own)
            value.name = own
        fixed.add(value.name)
    wanted = [*order, *runner.names]
    ends = [v.name for v in (*graph.input, *outputs)]
    renames = {old: new for old, new in zip(ends, wanted) if old != new}
    inner = [o for n in graph.node for o in n.output] + [t.name for t in graph.initializer]
    renames.update({name: f"{name}_inner" for name in inner if name in wanted and name not in ends})
    rename_values(model, renames)


def rename_values(model: onnx.ModelProto, renames: dict[str, str]) -> None:
    """Rename tensors everywhere in `model`, in place."""
    from edgekit.graphs import subgraphs

    for graph in subgraphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = renames.get(value.name, value.name)
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name in renames:
                        names[i] = renames[name]


def _name_dimensions(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    symbols: dict[str, str] = {}
    for value, spec in zip(model.graph.input, inputs):
        for dim, name in zip(value.type.tensor_type.shape.dim, spec.shape):
            if isinstance(name, str) and dim.dim_param:
                symbols.setdefault(dim.dim_param, name)
    if not symbols:
        return
    word = re.compile(r"[A-Za-z_]\w*")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = word.sub(lambda m: symbols.get(m[0], m[0]), dim.dim_param)
    for value, spec in zip(model.graph.input, inputs):
        for dim, name in zip(value.type.tensor_type.shape.dim, spec.shape):
            if isinstance(name, str):
                dim.dim_param = name


def _keep_module_names(model: onnx.ModelProto, scopes: dict[str, str]) -> None:
    """Drop the exporter's notes to itself (they hold file paths); keep which PyTorch module a node came from."""
    from edgekit.graphs import all_nodes

    for node in all_nodes(model):
        kept = {p.key: p.value for p in node.metadata_props}.get(MODULE_KEY)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.input) > 1:
            kept = scopes.get(node.input[1], kept)
        del node.metadata_props[:]
        node.doc_string = ""
        if kept:
            node.metadata_props.add(key=MODULE_KEY, value=kept)
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
