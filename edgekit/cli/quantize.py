"""Add INT8, FP16 or BF16 variants to a package.

INT8 is calibrated on real inputs: a folder of images, WAV or npz files (--calib), the recipe's samples (--recipe),
or the samples that the package holds. The result is run and compared with the reference; --max-drop is the largest
loss accepted, in points of the recipe's first metric (with --recipe), else of top-1 agreement with the reference,
else of the output's power. If it cannot be met, the best variant is kept, marked over budget, and the exit code is 1.

  edgekit quantize digits_cnn.edge --precision int8 --recipe models/digits_cnn.py --max-drop 0.3

A recipe is Python and is executed; name only recipes that you trust.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.package import Package
    from edgekit.recipe import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("package", metavar="X.edge", help="the package to add to")
    parser.add_argument(
        "--precision",
        default="int8",
        metavar="P",
        help="int8 (default; both forms), fp16, bf16, or weights only: w8, w4",
    )
    parser.add_argument("--recipe", metavar="R.py", help="recipe whose samples calibrate and whose metric judges")
    parser.add_argument("--calib", metavar="DIR|FILE", type=Path, help="folder of real inputs, or an .npz of them")
    parser.add_argument("--samples", metavar="N", type=int, help="how many inputs to calibrate on (default 256)")
    parser.add_argument("--max-drop", metavar="POINTS", type=float, default=0.5, help="accuracy budget (default 0.5)")
    parser.add_argument(
        "--method", metavar="M", help="minmax, percentile, entropy or mse (default: the one with the least error)"
    )
    parser.add_argument("--plain", action="store_true", help="only ranges and rounding, no accuracy recovery")
    parser.add_argument(
        "--sensitivity", action="store_true", help="measure each layer alone in INT8: reports/sensitivity.json and .png"
    )
    parser.add_argument(
        "--calib-report", action="store_true", help="say whether the calibration data are good, and change nothing"
    )
    parser.add_argument(
        "--half-io", action="store_true", help="float16 inputs and outputs for fp16 and int8-trt (default: float32)"
    )
    parser.add_argument("--force", action="store_true", help="replace a variant that exists")


def run(args: argparse.Namespace) -> int:
    """Quantize; 0 within budget, 1 over it."""
    from edgekit.cli.output import bytes_text, note, print_json, print_table, print_text, progress
    from edgekit.errors import UsageError
    from edgekit.package import Package
    from edgekit.quantize.apply import quantize_package
    from edgekit.quantize.ranges import METHODS
    from edgekit.recipe import spec_from_recipe

    if args.method is not None and args.method not in METHODS:
        raise UsageError(f"Method '{args.method}' is not known; expected one of {', '.join(METHODS)}.")
    package = Package.open(args.package)
    recipe = spec_from_recipe(args.recipe) if args.recipe else None
    if args.calib_report:
        return _report(package, recipe, args)
    with progress("quantizing", 100) as advance:
        shown = 0

        def on_progress(_what: str, done: int, total: int) -> None:
            nonlocal shown
            now = round(100 * done / max(1, total))
            advance(now - shown)
            shown = now

        result = quantize_package(
            package,
            precision=args.precision,
            recipe=recipe,
            calib=args.calib,
            samples=args.samples,
            max_drop=args.max_drop,
            method=args.method,
            plain=args.plain,
            sensitivity=args.sensitivity,
            half_io=args.half_io,
            force=args.force,
            progress=on_progress,
        )
    report = result.report
    for warning in report.warnings:
        note(f"note: {warning}")
    if args.json:
        print_json(report)
        return 0 if report.within_budget else 1
    rows = [
        (a.step, f"{a.error:.3g}", "-" if a.agreement is None else f"{100 * a.agreement:.2f}", "yes" if a.kept else "")
        for a in report.attempts
    ]
    print_table(["tried", "error>", "agreement %>", "kept"], rows)
    if report.layers:
        print_table(
            ["layer", "module", "error>", "SNR dB>", "in float"],
            [
                (s.node, s.module, f"{s.error:.3g}", f"{s.snr_db:.1f}", "yes" if s.left_float else "")
                for s in report.layers
            ],
            title="each layer alone in INT8, the most sensitive first",
        )
    for v in report.variants:
        faster = "" if v.speed_up is None else f", {v.speed_up:.2f} times the speed of fp32 here"
        print_text(
            f"{v.id}: {report.measure} {_change(report.reference, v.result)} "
            f"({v.drop:+.2f} points lost, budget {report.budget:g}), {bytes_text(v.bytes)}{faster}"
        )
    print_text(
        f"calibrated on {report.samples} of {report.calibrated_on}, {report.wall_s:.1f} s, "
        f"peak memory {bytes_text(report.peak_bytes)}"
    )
    over = next((v for v in report.variants if not v.within_budget), None)
    if over is not None:
        note(
            f"edgekit: '{over.id}' loses {over.drop:.2f} points, over its budget of {report.budget:g}; "
            "it is kept and marked over budget. Give more --samples, another --method or a larger --max-drop."
        )
        return 1
    return 0


def _report(package: Package, recipe: ModelSpec | None, args: argparse.Namespace) -> int:
    """Print what the calibration data look like; 1 if there is something to look at."""
    from edgekit.cli.output import percent_text, print_json, print_table, print_text
    from edgekit.graphs import load_model
    from edgekit.quantize.data import calibration_data
    from edgekit.quantize.data_report import calibration_report
    from edgekit.quantize.prepare import prepared

    data = calibration_data(package, recipe=recipe, calib=args.calib, samples=args.samples)
    model = prepared(load_model(package.model_file(package.reference)))
    report = calibration_report(package, model, data, recipe=recipe)
    if args.json:
        print_json(report)
        return 1 if report.problems else 0
    rows = [
        ("samples", f"{report.samples} of {report.source}"),
        ("duplicates", str(report.duplicates)),
        ("scales move, half to all (median)", percent_text(report.median_shift)),
        *((f"  {name}", percent_text(shift)) for name, shift in report.moving.items()),
    ]
    print_table(["what", "value"], rows)
    for problem in report.problems or ("The data look good.",):
        print_text(problem)
    return 1 if report.problems else 0


def _change(before: float, after: float) -> str:
    """A measure before and after: shares in percent, what is larger than 1 (a perplexity) as it is."""
    factor, digits = (100, 2) if max(abs(before), abs(after)) <= 1 else (1, 4)
    return f"{factor * before:.{digits}f} -> {factor * after:.{digits}f}"
