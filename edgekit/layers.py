"""Where two variants part: layer by layer, and the smallest piece of the graph that still shows it.

Both work on tensors that the two graphs have in common by name; a tensor that the variant quantizes is compared as its
consumers see it, after Q/DQ. Needs the onnx package.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit._lazy import require
from edgekit.errors import EdgekitError, UsageError
from edgekit.graphs import infer_shapes, load_model, module_of, subgraphs
from edgekit.noise import NoiseSums
from edgekit.package import Package
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Array, Tensors, TensorSpec, batches, take_samples

if TYPE_CHECKING:
    import onnx

SNR_DB = 20.0
"""Below this signal-to-noise ratio (10 % of the signal's amplitude is error) a layer counts as bad."""

GROUP_BYTES = 256 << 20
"""Intermediate tensors of one batch fetched at a time, per graph."""


class LayerDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the variant against the same tensor of the reference, over all samples.

    `snr_db` is 10 log10(reference power / error power): infinity when equal, None when not finite; for a variant
    that was rescaled between layers (equalisation), after the best factor a channel. `module` is the PyTorch module
    that the node came from, or an empty string.
    """

    tensor: str
    node: str
    operator: str
    module: str
    snr_db: float | None
    max_abs: float | None

    def bad(self, snr_db: float) -> bool:
        """Whether the tensor is not finite, or noisier than `snr_db`."""
        return self.snr_db is None or self.snr_db < snr_db


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """Layers in the order of execution; `first_bad` is the first one under `limit_db`, or None."""

    package: str
    variant: str
    reference: str
    samples: int
    limit_db: float
    layers: tuple[LayerDifference, ...]
    first_bad: LayerDifference | None


class Bisection(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest piece that still fails: `nodes` of it, ending at `layer`; `alone` says what it does there."""

    layer: LayerDifference
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    alone: str


@dataclass(frozen=True)
class Piece:
    """A piece of the variant as a model of its own, with real inputs and what the reference has at its end."""

    bisection: Bisection
    model: onnx.ModelProto
    inputs: Tensors
    expected: Tensors


class _Pair:
    """The reference and the variant as graphs, with the tensors they share."""

    def __init__(self, package: Package, variant: str, samples: int) -> None:
        require("onnx", why="compare variants layer by layer")
        chosen, reference = package.variant(variant), package.reference
        for v in (chosen, reference):
            if v.format != "onnx":
                raise UsageError(f"Variant '{v.id}' is a {v.format} engine; layers are compared between ONNX variants.")
        if chosen.id == reference.id:
            raise UsageError(f"'{variant}' is the reference itself. Name another variant with --variant.")
        self.package, self.chosen, self.reference = package, chosen, reference
        self.model = load_model(package.model_file(chosen))
        self.float_model = load_model(package.model_file(reference))
        drawn = package.samples()
        specs = package.manifest.input_specs
        self.count = min(drawn.count, samples)
        self.feed = take_samples(drawn.inputs, specs, 0, self.count, specs)
        self.specs = specs
        self.seen = seen_names(self.model)
        self.rescaled = any("equalisation" in s or "smoothing" in s for s in chosen.settings.get("steps", ()))
        made = {o for n in self.model.graph.node for o in n.output} | {i.name for i in self.model.graph.input}
        self.shared = [
            (node, name)
            for node in self.float_model.graph.node
            if node.op_type != "Constant"
            for name in node.output
            if name and name in made
        ]

    def values(self, names: Sequence[str]) -> Iterator[tuple[Tensors, Tensors]]:
        """Batches of `(reference, variant)` values of the shared tensors `names`."""
        groups = _groups(self.float_model, names)
        for group in groups:
            with (
                _session_with(self.float_model, group, "reference") as a,
                _session_with(self.model, [self.seen.get(n, n) for n in group], self.chosen.id) as b,
            ):
                for feed in batches(self.feed, self.specs, 8):
                    left, right = a.run(feed), b.run(feed)
                    yield {n: left[n] for n in group}, {n: right[self.seen.get(n, n)] for n in group}


def compare_layers(package: Package, variant: str, *, samples: int = 32, limit_db: float = SNR_DB) -> LayerReport:
    """Every shared tensor of `variant` against the reference, on the package's samples.

    Raises:
        UsageError: `variant` is the reference, or not ONNX.
        PackageError, IntegrityError: no samples, or a changed file.
    """
    pair = _Pair(package, variant, samples)
    sums: dict[str, NoiseSums] = {name: NoiseSums(pair.rescaled) for _, name in pair.shared}
    for reference, got in pair.values(list(sums)):
        for name, value in reference.items():
            if value.dtype.kind == "f":
                sums[name].add(got[name], value)
            else:
                sums.pop(name, None)
    layers = tuple(
        LayerDifference(
            tensor=name,
            node=node.name,
            operator=node.op_type,
            module=module_of(node),
            snr_db=sums[name].snr_db,
            max_abs=sums[name].max_abs if sums[name].finite else None,
        )
        for node, name in pair.shared
        if name in sums
    )
    return LayerReport(
        package=package.path.name,
        variant=variant,
        reference=pair.reference.id,
        samples=pair.count,
        limit_db=limit_db,
        layers=layers,
        first_bad=next((layer for layer in layers if layer.bad(limit_db)), None),
    )


def bisect(package: Package, variant: str, *, samples: int = 4, limit_db: float = SNR_DB) -> Piece | None:
    """The smallest piece of `variant` that still fails when it is fed the reference's own values; None if none fails.

    The piece ends at the first bad layer and grows backwards, one shared tensor at a time, until it fails.

    Raises:
        As `compare_layers`.
    """
    report = compare_layers(package, variant, samples=samples, limit_db=limit_db)
    if report.first_bad is None:
        return None
    pair = _Pair(package, variant, samples)
    if pair.rescaled:
        raise UsageError(
            f"'{variant}' was rescaled between its layers, so pieces of it cannot be fed with the reference's values. "
            "Bisect a variant made with: edgekit quantize --plain --force"
        )
    end = report.first_bad
    order = [layer.tensor for layer in report.layers]
    names = [*order[: order.index(end.tensor) + 1]]
    held = _first_batch(pair, names)
    held.update(next(batches(pair.feed, pair.specs, 8)))
    depth = 0
    piece: Piece | None = None
    while piece is None:
        depth += 1
        cut = _cut(pair, end.tensor, held, depth)
        alone = _run_piece(cut, held, end.tensor, pair.seen.get(end.tensor, end.tensor), limit_db)
        whole = not any(name in order for name in cut.feeds)
        if alone or whole:
            piece = Piece(
                Bisection(
                    layer=end,
                    nodes=tuple(n.name or n.op_type for n in cut.model.graph.node),
                    inputs=tuple(cut.feeds),
                    alone=alone or f"only the whole graph up to '{end.tensor}' fails",
                ),
                cut.model,
                {k: held[k] for k in cut.feeds},
                {end.tensor: held[end.tensor]},
            )
    return piece


def piece_files(piece: Piece, variant: str) -> dict[str, bytes]:
    """The piece as files: `bisect-VARIANT.onnx`, and `.npz` with its inputs and the reference's output."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"input/{k}": v for k, v in piece.inputs.items()}
    arrays.update((f"output/{k}", v) for k, v in piece.expected.items())
    np.savez_compressed(buffer, **arrays)
    model = piece.model.SerializeToString(deterministic=True)
    return {f"bisect-{variant}.onnx": model, f"bisect-{variant}.npz": buffer.getvalue()}


def seen_names(model: onnx.ModelProto) -> dict[str, str]:
    """For each quantized tensor the name under which its consumers see it: the output of its DequantizeLinear."""
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    out = {}
    for name, nodes in users.items():
        for quantize in nodes:
            if quantize.op_type != "QuantizeLinear" or quantize.input[0] != name:
                continue
            after = users.get(quantize.output[0], [])
            dequantize = next((n for n in after if n.op_type == "DequantizeLinear"), None)
            if dequantize is not None:
                out[name] = dequantize.output[0]
    return out


def _groups(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[list[str]]:
    """`names` in groups whose values of one batch stay under `GROUP_BYTES`."""
    sizes = {}
    for value in infer_shapes(model).graph.value_info:
        dims = [d.dim_value or 8 for d in value.type.tensor_type.shape.dim]
        sizes[value.name] = 4 * math.prod(dims)
    group: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, 1 << 20)
        if group and total + size > GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _session_with(model: onnx.ModelProto, names: Sequence[str], variant: str) -> OrtSession:
    """`model` in ONNX Runtime with `names` as outputs."""
    copy = type(model)()
    copy.CopyFrom(model)
    have = {o.name for o in copy.graph.output}
    copy.graph.output.extend(copy.graph.output[0].__class__(name=n) for n in dict.fromkeys(names) if n not in have)
    return OrtSession(copy.SerializeToString(), variant=variant)


def _first_batch(pair: _Pair, names: Sequence[str]) -> Tensors:
    """The reference's values of `names` on the first batch."""
    held: Tensors = {}
    for group in _groups(pair.float_model, names):
        with _session_with(pair.float_model, group, "reference") as session:
            values = session.run(next(batches(pair.feed, pair.specs, 8)))
            held.update({n: values[n] for n in group})
    return held


@dataclass(frozen=True)
class _Cut:
    model: onnx.ModelProto
    feeds: list[str]


def _cut(pair: _Pair, end: str, held: Tensors, depth: int) -> _Cut:
    """The piece of the variant that makes `end` from tensors in `held` that lie `depth` of them further up."""
    borders = set(held) - {end}
    onnx = require("onnx", why="compare variants layer by layer")
    model = pair.model
    makers = {o: n for n in model.graph.node for o in n.output if o}
    target = pair.seen.get(end, end)
    best: dict[str, int] = {}
    stack = [(target, 0)]
    while stack:
        name, passed = stack.pop()
        if passed >= depth or best.get(name, depth + 1) <= passed or name not in makers:
            continue
        best[name] = passed
        for source in _inputs_of(makers[name]):
            stack.append((source, passed + (source in borders)))
    chosen = {id(makers[name]) for name in best}
    nodes = [n for n in model.graph.node if id(n) in chosen]
    made = {o for n in nodes for o in n.output}
    constants = {t.name: t for t in model.graph.initializer}
    needed = [i for n in nodes for i in _inputs_of(n) if i and i not in made]
    feeds = list(dict.fromkeys(i for i in needed if i not in constants))
    unknown = [name for name in feeds if name not in held]
    if unknown:
        raise UsageError(f"Tensor '{unknown[0]}' exists in the variant only, so the graph cannot be cut there.")
    types = _types(model)

    def value(name: str, shape: tuple[int, ...]) -> Any:
        kind = types.get(name) or onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    graph = onnx.helper.make_graph(
        nodes,
        "piece",
        [value(name, held[name].shape) for name in feeds],
        [value(target, held[end].shape)],
        [constants[n] for n in dict.fromkeys(needed) if n in constants],
    )
    piece = onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    piece.functions.extend(model.functions)
    return _Cut(piece, feeds)


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those that graphs inside it take from outside included."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for graph in subgraphs(inner) if inner.node else ():
                own = {o for n in graph.node for o in n.output} | {i.name for i in graph.input}
                names.extend(i for n in graph.node for i in n.input if i and i not in own)
    return [n for n in names if n]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = infer_shapes(model).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {v.name: v.type.tensor_type.elem_type for v in values}


def _run_piece(cut: _Cut, held: Mapping[str, Array], end: str, target: str, limit_db: float) -> str:
    """Why the piece fails on the reference's own values, or an empty string when it does not."""
    try:
        with OrtSession(cut.model.SerializeToString(), variant="piece") as session:
            feed = {spec.name: _as(held[spec.name], spec) for spec in session.inputs}
            got = session.run(feed)[target]
    except EdgekitError as error:
        return str(error)
    sums = NoiseSums()
    sums.add(got, held[end])
    snr = sums.snr_db
    if snr is None:
        return "its output holds NaN or infinity, or has another shape"
    return f"its output has {snr:.1f} dB" if snr < limit_db else ""


def _as(value: Array, spec: TensorSpec) -> Array:
    return value.astype(spec.dtype) if spec.dtype in ("float16", "float32", "float64") else value
