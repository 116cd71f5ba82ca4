"""Measure a package's variants on this machine: latency percentiles at batch 1, the best throughput over batch
sizes, and joules per inference where a sensor can be read.

The variants take turns in rounds, so that speed-ups compare the same moments even on a busy machine. Writes
reports/bench.json and reports/bench.png into the package.

  edgekit bench resnet.edge
  edgekit bench resnet.edge --variant fp32 --variant int8 --threads 1 --seconds 10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from edgekit.bench import BenchReport, VariantBench, bench
from edgekit.bench.plot import png_of
from edgekit.bench.runner import SWEEP
from edgekit.cli.output import note, print_json, print_table, print_text
from edgekit.errors import EdgekitError, MissingDependencyError, StorageError, UsageError
from edgekit.package import Package
from edgekit.runtime.devices import one_device

QUICK_SECONDS, QUICK_SWEEP = 0.4, (1, 8, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit bench`."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument(
        "--variant", action="append", metavar="V", help="measure this variant (repeat for more); default: all"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch of the latencies (default 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the runtime; default: physical cores")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="time for latency, and again for throughput, a variant (default 3)"
    )
    parser.add_argument("--device", metavar="D", help="cpu or cuda:N (default: the best for each variant)")
    parser.add_argument("--quick", action="store_true", help="a rough figure in a second or two a variant")
    parser.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="size of a free dimension; the inputs are random"
    )
    parser.add_argument("--no-plot", action="store_true", help="do not draw reports/bench.png")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit bench`; returns 1 if the reports could not be written."""
    package = Package.open(args.package)
    seconds = args.seconds if args.seconds is not None else QUICK_SECONDS if args.quick else 3.0
    report = bench(
        package,
        variants=args.variant,
        batch=args.batch,
        threads=args.threads,
        seconds=seconds,
        sweep=QUICK_SWEEP if args.quick else SWEEP,
        sizes=_sizes(args.size),
        device=one_device(args.device, command="bench"),
        say=note,
    )
    code = _write(package, report, plot=not args.no_plot)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return code


def _sizes(given: Sequence[str]) -> dict[str, int]:
    out = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not name or not equals or not number.isdigit():
            raise UsageError(f"--size {text} is not usable; expected NAME=N, for example: --size height=224")
        out[name] = int(number)
    return out


def _write(package: Package, report: BenchReport, *, plot: bool) -> int:
    """Put the reports into the package; what keeps them from being written is said, and the figures are kept."""
    try:
        data = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        written = [package.write_report("bench.json", data)]
        if plot:
            try:
                written.append(package.write_report("bench.png", png_of(report)))
            except MissingDependencyError as error:
                note(f"no picture: {error}")
    except StorageError as error:
        note(f"edgekit: {error}")
        return EdgekitError.exit_code
    note(f"wrote {', '.join(str(p) for p in written)}")
    return 0


def _print(report: BenchReport) -> None:
    energy = any(v.energy for v in report.variants)
    columns = ["variant", "p50 ms>", "p90 ms>", "p99 ms>", "max ms>", "calls>", "speed-up>", "samples/s>", "at batch>"]
    columns += ["mJ/inference>"] if energy else []
    rows = [_row(v, report, energy) for v in report.variants]
    print_table(columns, rows)
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    print_text(
        f"\nlatency at batch {report.batch}, {threads}, {report.inputs}; {report.machine.cpu}, "
        f"{report.variants[0].device.partition(',')[0]}"
    )
    print_text(f"speed-up over {report.reference}: median of rounds measured side by side (quartiles)")
    print_text(_energy_line(report))
    for variant, reason in report.skipped.items():
        print_text(f"skipped {variant}: {reason}")
    for text in report.notes:
        print_text(f"note: {text}")


def _row(v: VariantBench, report: BenchReport, energy: bool) -> list[object]:
    times = [_short(1e3 * s) for s in (v.latency.p50_s, v.latency.p90_s, v.latency.p99_s, v.latency.max_s)]
    own = v.id == report.reference
    speed = "1" if own else f"{v.speedup.ratio:.2f} ({v.speedup.low:.2f} to {v.speedup.high:.2f})"
    row: list[object] = [v.id, *times, v.latency.calls, speed, _short(v.throughput.samples_per_s), v.throughput.batch]
    if energy:
        first = v.energy[0] if v.energy else None
        row.append(f"{1e3 * first.joules_per_inference:.3g} ± {1e3 * first.uncertainty_j:.1g}" if first else None)
    return row


def _short(value: float) -> str:
    """Three digits, and all digits of large numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _energy_line(report: BenchReport) -> str:
    measured = [j for v in report.variants for j in v.energy]
    if measured:
        return f"energy: {measured[0].scope}, by {measured[0].source}, idle power included"
    return f"energy: not measured. {report.variants[0].energy_reason}"
