"""Find the setting that takes the least energy, or answers the fastest: variants, batch sizes, threads, streams, and
the machine's power modes or power cap where they can be set.

The machine is set back to what it was however this ends: also after Ctrl-C, a crash or kill -9. Writes
reports/tune.json and reports/tune.png into the package, and ends with the commands that set the chosen point. Exits 1
if no point is within the limits.

  edgekit tune resnet.edge --objective energy --max-p99 20ms
  edgekit tune resnet.edge --objective latency --max-power 15 --variant int8
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from edgekit.cli.output import note, print_json, print_table, print_text
from edgekit.cli.reports import write_reports
from edgekit.errors import EdgekitError, UsageError
from edgekit.package import Package
from edgekit.runtime.devices import one_device
from edgekit.tune.front import Point
from edgekit.tune.plot import tune_png
from edgekit.tune.sweep import BATCHES, Space, TuneReport, tune

_MOST_ROWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit tune`."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument("--objective", required=True, choices=("energy", "latency"), help="what to make small")
    parser.add_argument("--max-p99", metavar="TIME", help="p99 of a call, at most: 20ms, 0.02s, 500us")
    parser.add_argument("--max-power", type=float, metavar="W", help="watts while it runs, at most")
    parser.add_argument("--variant", action="append", metavar="V", help="try this variant (repeat); default: all")
    parser.add_argument("--batch", metavar="LIST", help=f"batch sizes (default {','.join(map(str, BATCHES))})")
    parser.add_argument("--threads", metavar="LIST", help="threads a call (default 1, 2, 4, … on a CPU)")
    parser.add_argument("--streams", metavar="LIST", help="calls at a time (default 1,2; on a GPU 1,2,4)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="time a point, at least (default 1)")
    parser.add_argument("--keep-power", action="store_true", help="leave power modes and caps as they are")
    parser.add_argument("--device", metavar="D", help="cpu or cuda:N (default: the best for each variant)")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where the machine's /sys, /proc and /etc are mounted",
    )
    parser.add_argument("--no-plot", action="store_true", help="do not draw reports/tune.png")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit tune`; returns 1 if nothing is within the limits or the reports could not be written."""
    package = Package.open(args.package)
    if not 0.01 <= args.seconds < 1e4:
        raise UsageError(f"--seconds must be 0.01 or more, got {args.seconds:g}.")
    if args.max_power is not None and not args.max_power > 0:
        raise UsageError(f"--max-power must be positive, got {args.max_power:g}.")
    if not args.root.is_dir():
        raise UsageError(f"--root {args.root} is not a folder; expected the root of a file tree.")
    report = tune(
        package,
        objective=args.objective,
        max_p99_s=_time(args.max_p99) if args.max_p99 else None,
        max_power_w=args.max_power,
        space=Space(
            variants=args.variant,
            batches=_numbers("--batch", args.batch) or BATCHES,
            threads=_numbers("--threads", args.threads),
            streams=_numbers("--streams", args.streams),
            power=not args.keep_power,
        ),
        seconds=args.seconds,
        device=one_device(args.device, command="tune"),
        root=args.root,
        say=note,
    )
    draw = not args.no_plot and report.points
    code = write_reports(package, "tune", report, picture=partial(tune_png, report) if draw else None)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return code or (0 if report.chosen is not None else EdgekitError.exit_code)


def _time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--max-p99 {text} is not usable; expected a time with its unit, for example: --max-p99 20ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdigit() and 1 <= int(p) <= 4096 for p in parts):
        raise UsageError(f"{option} {text} is not usable; expected numbers from 1, separated by commas: {option} 1,2,4")
    return tuple(dict.fromkeys(map(int, parts)))


def _print(report: TuneReport) -> None:
    energy = report.scope is not None
    shown = list(report.front)
    if len(shown) > _MOST_ROWS:
        step = len(shown) / _MOST_ROWS
        kept = {int(i * step) for i in range(_MOST_ROWS)}
        shown = [p for i, p in enumerate(shown) if i in kept or p == report.chosen]
    columns = ["", "variant", "batch>", "threads>", "streams>"]
    columns += [report.control] if report.control else []
    columns += ["p99 ms>", "samples/s>"] + (["mJ/sample>", "W>"] if energy else []) + ["slowed by"]
    if not any(p.throttled for p in shown):
        columns.pop()
    rows = [_row(p, report, energy)[: len(columns)] for p in shown]
    if rows:
        print_table(columns, rows)
        more = (
            f"; {len(report.front) - len(shown)} points of it are not shown" if len(shown) < len(report.front) else ""
        )
        print_text(f"\nfront of {len(report.points)} points: nothing has both a lower p99 and {_other(energy)}{more}")
    if energy:
        print_text(f"energy: {report.scope}, by {report.source}, idle power included")
    print_text("p99 is of one call; waiting in a queue is not in it")
    for variant, reason in report.skipped.items():
        print_text(f"skipped {variant}: {reason}")
    for text in report.notes:
        print_text(f"note: {text}")
    if report.chosen is None:
        print_text(f"\n{_nearest(report)}")
        return
    if report.as_good:
        print_text(f"note: {report.as_good} other points are as good as the chosen one, as far as the sensor tells")
    print_text("\nto set the chosen point (*):")
    for command in report.commands:
        print_text(f"  {command}")


def _other(energy: bool) -> str:
    return "less energy a sample" if energy else "more samples a second"


def _row(p: Point, report: TuneReport, energy: bool) -> list[object]:
    row: list[object] = ["*" if p == report.chosen else "", p.variant, p.batch, p.threads, p.streams]
    row += [p.power] if report.control else []
    row += [f"{1e3 * p.p99_s:.3g}", f"{p.samples_per_s:.4g}"]
    if energy:
        each = p.joules_per_sample
        row.append(None if each is None else f"{1e3 * each:.3g} ± {1e3 * (p.uncertainty_j or 0):.1g}")
        row.append(None if p.power_w is None else f"{p.power_w:.3g}")
    return [*row, ", ".join(p.throttled)]


def _nearest(report: TuneReport) -> str:
    limits = []
    if report.max_p99_s is not None:
        fastest = min(report.points, key=lambda p: p.p99_s, default=None)
        if fastest is not None:
            limits.append(
                f"the lowest p99 is {1e3 * fastest.p99_s:.3g} ms, {1e3 * report.max_p99_s:.3g} ms is the limit"
            )
    powers = [p.power_w for p in report.points if p.power_w is not None]
    if report.max_power_w is not None and powers:
        limits.append(f"the lowest power is {min(powers):.3g} W, {report.max_power_w:.3g} W is the limit")
    return f"No point is within the limits: {'; '.join(limits) or 'nothing was measured'}. Raise a limit."
