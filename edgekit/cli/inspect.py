"""What is inside a package, or an ONNX file: inputs and outputs, variants with size and accuracy, operators,
parameters and FLOPs. Every file's digest is checked: a changed file is exit code 1.

  edgekit inspect resnet.edge
  edgekit inspect resnet.edge --variant int8 --layers
  edgekit inspect model.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgekit.cli.engine import print_engine
from edgekit.cli.output import bytes_text, percent_text, print_json, print_table, print_text
from edgekit.cli.source import local
from edgekit.cli.stages import print_stages
from edgekit.errors import UsageError
from edgekit.inspect import Graph, Inspection, ModelInspection, inspect_model, inspect_package
from edgekit.manifest import Manifest, Tensor, Variant
from edgekit.package import MANIFEST, Package
from edgekit.preprocess import ImagePreprocess, Preprocess
from edgekit.signature import Signed, short, signed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit inspect`."""
    parser.add_argument("path", metavar="X.edge|X.onnx", help="a package, an ONNX file, or an engine in a package")
    parser.add_argument("--variant", metavar="V", help="the variant whose graph is read; default: the reference")
    parser.add_argument("--layers", action="store_true", help="a table of all layers")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit inspect`."""
    path = local(args.path)
    result: Inspection | ModelInspection
    if path.suffix == ".onnx" and not path.is_dir():
        if args.variant is not None:
            raise UsageError("--variant is for packages; an ONNX file is a single variant. Leave it out.")
        result = inspect_model(path)
    elif path.suffix == ".engine" and not path.is_dir():
        package, variant = _package_of(path)
        result = inspect_package(package, variant=variant)
    else:
        package = Package.open(path)
        if package.stage_names and args.variant is None and not args.layers:
            return _inspect_stages(package, as_json=args.json)
        result = inspect_package(package, variant=args.variant)
    if args.json:
        if isinstance(result, Inspection) and result.engine is not None and not args.layers:
            result = msgspec.structs.replace(result, engine=msgspec.structs.replace(result.engine, layers=()))
        if result.graph is not None and not args.layers:
            result = msgspec.structs.replace(result, graph=msgspec.structs.replace(result.graph, layers=()))
        print_json(result)
        return 0
    if isinstance(result, Inspection):
        _print_package(result)
    else:
        _print_facts([("file", f"{result.path}, {bytes_text(result.bytes)}"), ("sha256", result.sha256)])
        _print_facts([*_tensor_lines("input", result.inputs), *_tensor_lines("output", result.outputs)])
    if isinstance(result, Inspection) and result.engine is not None:
        print_engine(result.engine, layers=args.layers)
    elif result.graph is None:
        print_text(f"note: {result.graph_note}")
    else:
        _print_graph(result.graph, layers=args.layers)
    return 0


def _inspect_stages(package: Package, *, as_json: bool) -> int:
    """The stages of a package, every file of it and of each checked."""
    own_files = [package.file(name) for name in package.manifest.all_files()]
    found = {stage.name: inspect_package(own) for stage, own in package.stages()}
    if as_json:
        print_json({"manifest": package.manifest, "signed": signed(package), "stages": found})
        return 0
    _print_facts([("signature", _signature_text(signed(package)))])
    print_stages(package)
    sizes = [f.stat().st_size for f in own_files] + [f.bytes for result in found.values() for f in result.checked]
    print_text(f"{len(sizes)} files, {bytes_text(sum(sizes))}: every SHA-256 matches the manifests")
    return 0


def _package_of(engine: Path) -> tuple[Package, str]:
    """The package around an engine file, and the variant that the file is."""
    for folder in engine.resolve().parents:
        if (folder / MANIFEST).is_file():
            package = Package.open(folder)
            name = engine.resolve().relative_to(folder.resolve()).as_posix()
            for v in package.manifest.variants:
                if v.file == name:
                    return package, v.id
    raise UsageError(
        f"'{engine}' is not an engine of a package, and an engine alone can be read on its own GPU only. "
        "Name one inside a package: edgekit inspect X.edge/engines/NAME.engine"
    )


def _print_package(result: Inspection) -> None:
    m = result.manifest
    facts = [
        ("package", f"{m.name} {m.version}" + (f", {m.task}" if m.task else "")),
        *([("description", m.description)] if m.description else []),
        *([("license", m.license)] if m.license else []),
        *_tensor_lines("input", m.inputs, m),
        *_tensor_lines("output", m.outputs),
        *([("labels", str(result.labels))] if result.labels else []),
        ("samples", f"{m.samples.count}, from {m.samples.source}" if m.samples else "none"),
        *_provenance_lines(m),
        ("signature", _signature_text(result.signed)),
    ]
    _print_facts(facts)
    print_text("")
    columns = ["variant", "precision", "format", "target", "size>", *_accuracy_columns(m.variants), "plugins"]
    print_table(columns, [_variant_row(v, m.variants) for v in m.variants])
    total = sum(f.bytes for f in result.checked)
    count = len(result.checked)
    print_text(f"\n{count} file{'s' if count != 1 else ''}, {bytes_text(total)}: every SHA-256 matches the manifest")
    if result.strangers:
        print_text(f"note: not in the manifest: {', '.join(result.strangers)}")


def _signature_text(found: Signed | None) -> str:
    if found is None:
        return "none"
    keys = ", ".join(map(short, found.keys)) or "nobody"
    if not found.fits:
        return f"void: the package was changed after {keys} signed it"
    return f"by {keys}; check it with: edgekit verify X.edge --verify-key PUB"


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    for name, value in facts:
        print_text(f"{name:<12} {value}")


def _tensor_lines(kind: str, tensors: Iterable[Tensor], manifest: Manifest | None = None) -> list[tuple[str, str]]:
    lines = []
    for t in tensors:
        text = str(t.spec)
        if manifest is not None:
            if t.name in manifest.states:
                text += f"  state, fed by {manifest.states[t.name]}"
            if t.name in manifest.defaults:
                text += f"  default {manifest.defaults[t.name]}"
            if t.name in manifest.preprocess:
                text += f"  from {_preprocess_text(manifest.preprocess[t.name])}"
        lines.append((kind, text))
    return lines


def _preprocess_text(p: Preprocess) -> str:
    if isinstance(p, ImagePreprocess):
        numbers = f"scale {p.scale:.4g}, mean {_numbers(p.mean)}, std {_numbers(p.std)}"
        return f"an image: {p.color} {p.height}x{p.width} {p.layout}, {p.resize} ({p.interpolation}), {numbers}"
    length = f"{p.samples} samples" if p.samples else f"frames of {p.frame}" if p.frame else "any length"
    return f"a WAV file: {p.sample_rate} Hz mono, {length}"


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{v:.4g}" for v in values)


def _provenance_lines(m: Manifest) -> list[tuple[str, str]]:
    p = m.provenance
    lines = [
        ("source", f"{p.source} (sha256 {p.source_sha256[:12]}…)"),
        ("made", f"{p.created} by {p.tool}, {p.framework}, opset {p.opset}"),
    ]
    if p.parity:
        each = ", ".join(f"{x.max_abs:.2g} at batch {x.batch}" for x in p.parity)
        lines.append(("parity", f"largest difference to {p.framework}: {each}"))
    lines += [("note", text) for text in p.notes]
    return lines


def _accuracy_columns(variants: Sequence[Variant]) -> list[str]:
    measured = [v.accuracy for v in variants if v.accuracy is not None]
    columns = [f"{name}>" for name in dict.fromkeys(n for a in measured for n in a.metrics)]
    return [*columns, *(["agreement>", "max error>"] if measured else [])]


def _variant_row(v: Variant, variants: Sequence[Variant]) -> list[object]:
    cells: list[object] = []
    for column in _accuracy_columns(variants):
        name, a = column.rstrip(">"), v.accuracy
        if a is None:
            cells.append(None)
        elif name == "agreement":
            cells.append(percent_text(a.agreement))
        elif name == "max error":
            cells.append(f"{a.max_abs:.2g}")
        else:
            value = a.metrics.get(name)
            cells.append(None if value is None else f"{value:.4g}")
    return [v.id, v.precision, v.format, v.target, bytes_text(v.bytes), *cells, ", ".join(v.plugins) or None]


def _print_graph(graph: Graph, *, layers: bool) -> None:
    flops = "unknown (a shape cannot be inferred)" if graph.flops is None else count_text(graph.flops)
    print_text(
        f"\ngraph of {graph.variant}: opset {graph.opset}, {count_text(graph.parameters)} parameters in "
        f"{bytes_text(graph.weight_bytes)}, FLOPs of one sample: {flops}"
    )
    if graph.taken_as_1:
        print_text(f"note: counted with {', '.join(graph.taken_as_1)} as 1; shapes and FLOPs grow with it")
    if graph.producer:
        print_text(f"written by {graph.producer}")
    print_text("operators: " + ", ".join(f"{op} {n}" for op, n in graph.operators.items()))
    if not layers:
        return
    print_text("")
    columns = ["op", "name", "module", "output", "type", "weights", "bytes>", "FLOPs>"]
    rows = [
        [
            layer.op,
            layer.name,
            layer.module,
            None if layer.shape is None else "x".join(map(str, layer.shape)) or "scalar",
            layer.dtype,
            layer.weights,
            layer.weight_bytes or None,
            None if not layer.flops else count_text(layer.flops),
        ]
        for layer in graph.layers
    ]
    print_table(columns, rows)


def count_text(count: int) -> str:
    """A count as users read it: 512, 23.4 k, 1.24 M, 5.1 G."""
    size = float(count)
    for unit in ("", " k", " M"):
        if size < 999.5:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g} G"
