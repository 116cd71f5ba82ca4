"""Check every variant of a package that this machine can run against the reference.

Runs the package's own samples (no PyTorch, no dataset needed) and compares with the stored outputs of the
original model: largest error, cosine similarity, top-1 agreement. With --recipe the recipe's own metric is
measured through every variant too. Writes reports/verify.json. Exits 1 if a variant is outside its tolerance.

With --verify-key the package must be signed by that key: checked first, over every file.

--layers compares one variant with the reference tensor by tensor and names the first bad layer; --bisect cuts the
smallest piece of the graph that still fails and writes it, with real inputs, to reports/. Both need the onnx package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from edgekit.cli.output import note, percent_text, print_json, print_table, print_text
from edgekit.cli.source import local
from edgekit.errors import UsageError
from edgekit.layers import SNR_DB, LayerDifference, bisect, compare_layers, piece_files
from edgekit.package import Package
from edgekit.recipe import spec_from_recipe
from edgekit.runtime.devices import one_device
from edgekit.signature import TrustedKeys, short
from edgekit.verify import Check, VerifyReport, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", help="the package, or its URL")
    parser.add_argument("--variant", action="append", metavar="ID", help="only this variant (repeatable)")
    parser.add_argument(
        "--recipe", metavar="FILE.py", help="measure this recipe's metric as well (the file is executed)"
    )
    parser.add_argument(
        "--metric-samples", type=int, default=2000, metavar="N", help="at most N samples for the metric (default 2000)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: one a core)")
    parser.add_argument("--device", metavar="D", help="cpu or cuda:N (default: the best for each variant)")
    parser.add_argument(
        "--verify-key", type=Path, action="append", metavar="PUB", help="it must be signed by this key (repeatable)"
    )
    parser.add_argument("--layers", action="store_true", help="compare --variant with the reference layer by layer")
    parser.add_argument("--bisect", action="store_true", help="write the smallest piece of --variant that fails")
    parser.add_argument(
        "--snr", type=float, default=SNR_DB, metavar="DB", help=f"a layer below this is bad (default {SNR_DB:g} dB)"
    )


def run(args: argparse.Namespace) -> int:
    """Verify, print, write the report."""
    package = Package.open(local(args.package))
    signed_by = TrustedKeys(args.verify_key).check(package) if args.verify_key else None
    if signed_by:
        note(f"signed by {short(signed_by)}")
    if args.layers or args.bisect:
        if not args.variant or len(args.variant) != 1:
            raise UsageError("--layers and --bisect look at one variant; name it with --variant ID.")
        return (_bisect if args.bisect else _layers)(package, args)
    recipe = spec_from_recipe(args.recipe) if args.recipe else None
    report = verify(
        package,
        recipe=recipe,
        variants=args.variant,
        metric_samples=args.metric_samples,
        threads=args.threads,
        device=one_device(args.device, command="verify"),
    )
    report = msgspec.structs.replace(report, signed_by=signed_by)
    data = msgspec.json.format(msgspec.json.encode(report), indent=2)
    path = package.write_report("verify.json", data + b"\n")
    if args.json:
        print_json(report)
    else:
        _print(report)
    note(f"wrote {path.parent.parent.name}/reports/verify.json")
    return 0 if report.passed else 1


def _print(report: VerifyReport) -> None:
    metric = report.metric
    columns = ["variant", "max error>", "relative>", "cosine>", "agreement>"]
    columns += [f"{metric}>", "drop>"] if metric else []
    title = f"{report.package} against its reference on {report.samples} samples ({report.samples_source})"
    print_table([*columns, "verdict"], [_row(c, metric) for c in report.checks], title=title)
    for variant, why in report.skipped.items():
        print_text(f"{variant}: not run, {why}")
    if not report.checks:
        note(f"no variant of {report.package} can run on this machine, so nothing was verified")
    elif report.metric_note:
        note(report.metric_note)


def _row(check: Check, metric: str | None) -> list[object]:
    found = check.difference
    cells: list[object] = [check.variant]
    if found is None:
        cells += ["-"] * 4
    else:
        cells += [
            f"{found.max_abs:.2e}",
            f"{found.max_rel:.2e}",
            f"{found.cosine:.6f}",
            percent_text(found.agreement),
        ]
    if metric:
        cells.append(f"{check.metrics[metric]:.4f}" if metric in check.metrics else "-")
        cells.append("-" if check.drop is None else f"{check.drop:+.2f}")
    return [*cells, "ok" if check.passed else f"FAIL: {check.reason}"]


def _layers(package: Package, args: argparse.Namespace) -> int:
    report = compare_layers(package, args.variant[0], limit_db=args.snr)
    if args.json:
        print_json(report)
    else:
        title = f"{report.variant} against {report.reference}, layer by layer, {report.samples} samples"
        columns = ["layer", "operator", "module", "SNR dB>", "max error>", ""]
        print_table(columns, [_layer_row(layer, args.snr) for layer in report.layers], title=title)
    if report.first_bad is None:
        note(f"no layer is below {args.snr:g} dB")
        return 0
    note(f"first bad layer: {_layer_name(report.first_bad)}")
    return 1


def _layer_row(layer: LayerDifference, limit_db: float) -> list[object]:
    snr = "not finite" if layer.snr_db is None else f"{layer.snr_db:.1f}"
    error = "-" if layer.max_abs is None else f"{layer.max_abs:.2e}"
    return [layer.node or layer.tensor, layer.operator, layer.module, snr, error, "BAD" if layer.bad(limit_db) else ""]


def _layer_name(layer: LayerDifference) -> str:
    module = f", module {layer.module}" if layer.module else ""
    return f"{layer.node or layer.tensor} ({layer.operator}{module})"


def _bisect(package: Package, args: argparse.Namespace) -> int:
    variant = args.variant[0]
    piece = bisect(package, variant, limit_db=args.snr)
    if piece is None:
        note(f"no layer of '{variant}' is below {args.snr:g} dB, so there is nothing to cut out")
        if args.json:
            print_json({"variant": variant, "piece": None})
        return 0
    for name, data in piece_files(piece, variant).items():
        note(f"wrote {package.write_report(name, data)}")
    found = piece.bisection
    if args.json:
        print_json(found)
    else:
        print_text(f"first bad layer: {_layer_name(found.layer)}")
        print_text(f"smallest failing piece: {len(found.nodes)} nodes from {', '.join(found.inputs)}; {found.alone}")
    return 1
