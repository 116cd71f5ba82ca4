"""Check every variant of a package that this machine can run against the reference.

Runs the package's own samples (no PyTorch, no dataset needed) and compares with the stored outputs of the
original model: largest error, cosine similarity, top-1 agreement. With --recipe the recipe's own metric is
measured through every variant too. Writes reports/verify.json. Exits 1 if a variant is outside its tolerance.
"""

from __future__ import annotations

import argparse

import msgspec

from edgekit.cli.output import note, percent_text, print_json, print_table, print_text
from edgekit.package import Package
from edgekit.recipe import spec_from_recipe
from edgekit.verify import Check, VerifyReport, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument("--variant", action="append", metavar="ID", help="only this variant (repeatable)")
    parser.add_argument(
        "--recipe", metavar="FILE.py", help="measure this recipe's metric as well (the file is executed)"
    )
    parser.add_argument(
        "--metric-samples", type=int, default=2000, metavar="N", help="at most N samples for the metric (default 2000)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Verify, print, write the report."""
    package = Package.open(args.package)
    recipe = spec_from_recipe(args.recipe) if args.recipe else None
    report = verify(
        package,
        recipe=recipe,
        variants=args.variant,
        metric_samples=args.metric_samples,
        threads=args.threads,
    )
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
    if report.metric_note:
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
