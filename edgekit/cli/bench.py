"""Measure a package's variants on this machine: latency percentiles at batch 1, the best throughput over batch
sizes, and joules per inference where a sensor can be read.

The variants take turns in rounds, so that speed-ups compare the same moments even on a busy machine. Writes
reports/bench.json and reports/bench.png into the package.

  edgekit bench resnet.edge
  edgekit bench resnet.edge --variant fp32 --variant int8 --threads 1 --seconds 10
  edgekit bench resnet.edge --energy --recipe resnet.py
  edgekit bench resnet.edge --baseline old.json --fail-if "energy>+5%,p99>+10%"
  edgekit bench resnet.edge --variant int8 --sustained 10m
  edgekit bench resnet.edge --variant int8 --scenario offline
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edgekit.bench import bench
from edgekit.bench.joules import LONG_S
from edgekit.bench.plot import png_of
from edgekit.bench.runner import SWEEP
from edgekit.cli.bench_gate import add_gate_arguments, failed, gate_of, print_gate
from edgekit.cli.bench_scenario import add_scenario_arguments, check_no_scenario, run_scenario_command
from edgekit.cli.bench_sustained import run_sustained_command
from edgekit.cli.bench_view import print_report
from edgekit.cli.output import note, print_json
from edgekit.cli.reports import write_reports
from edgekit.errors import EdgekitError, UsageError
from edgekit.package import Package
from edgekit.recipe import spec_from_recipe
from edgekit.runtime.devices import one_device
from edgekit.telemetry import find_sensors

SECONDS = 3.0
QUICK_SECONDS, QUICK_SWEEP = 0.4, (1, 8, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit bench`."""
    parser.add_argument("package", metavar="X.edge", help="the package")
    parser.add_argument(
        "--variant", action="append", metavar="V", help="measure this variant (repeat for more); default: all"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="batch of the latencies (default 1); with --scenario at most (32)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the runtime; default: physical cores")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time for latency, throughput and energy each, a variant (default 3; 5 with --energy)",
    )
    parser.add_argument("--device", metavar="D", help="cpu or cuda:N (default: the best for each variant)")
    parser.add_argument("--quick", action="store_true", help="a rough figure in a second or two a variant")
    parser.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="size of a free dimension; the inputs are random"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="rounds in which the variants take turns")
    energy = parser.add_argument_group("energy", "see docs/energy.md")
    energy.add_argument(
        "--energy", action="store_true", help="longer windows, idle and active watts, joules per correct prediction"
    )
    energy.add_argument("--recipe", metavar="FILE.py", help="measure the share of right answers (the file is executed)")
    energy.add_argument(
        "--metric-samples", type=int, default=2000, metavar="N", help="at most N samples for that (default 2000)"
    )
    energy.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="where the machine's /sys and /proc are mounted"
    )
    add_gate_arguments(parser)
    parser.add_argument(
        "--sustained", metavar="TIME", help="load one variant until the machine is warm, at most so long: 10m, 90s, 1h"
    )
    add_scenario_arguments(parser)
    parser.add_argument("--no-plot", action="store_true", help="do not draw reports/bench.png")


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit bench`; returns 1 if a metric is worse than allowed, or the reports were not written."""
    package = Package.open(args.package)
    _check(args)
    sizes, found = _sizes(args.size), find_sensors(args.root)
    if args.scenario is not None:
        return run_scenario_command(args, package, sizes)
    check_no_scenario(args)
    args.batch = 1 if args.batch is None else args.batch
    if args.sustained is not None:
        return run_sustained_command(args, package, sizes)
    gate = gate_of(args, package, sizes, found)
    energy = args.energy or (gate is not None and gate.energy)
    usual = LONG_S if energy else QUICK_SECONDS if args.quick else SECONDS
    seconds = args.seconds if args.seconds is not None else usual
    report = bench(
        package,
        variants=gate.variants if gate else args.variant,
        batch=args.batch,
        threads=args.threads,
        seconds=seconds,
        sweep=QUICK_SWEEP if args.quick else SWEEP,
        sizes=sizes,
        trials=gate.trials if gate else args.trials,
        energy=energy,
        recipe=spec_from_recipe(args.recipe) if args.recipe else None,
        metric_samples=args.metric_samples,
        sensors=found,
        device=one_device(args.device, command="bench"),
        say=note,
    )
    if gate:
        report = gate.judge(report)
    code = write_reports(package, "bench", report, picture=None if args.no_plot else partial(png_of, report))
    if args.json:
        print_json(report)
    else:
        print_report(report, energy=args.energy)
        if gate:
            print_gate(report)
    return code or (EdgekitError.exit_code if failed(report) else 0)


def _check(args: argparse.Namespace) -> None:
    if args.recipe and not args.energy:
        raise UsageError("--recipe tells the share of right answers, which --energy uses. Add --energy.")
    if args.metric_samples < 1:
        raise UsageError(f"--metric-samples must be 1 or more, got {args.metric_samples}.")
    if not args.root.is_dir():
        raise UsageError(f"--root {args.root} is not a folder; expected the root of a file tree.")


def _sizes(given: Sequence[str]) -> dict[str, int]:
    out = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not name or not equals or not number.isdigit():
            raise UsageError(f"--size {text} is not usable; expected NAME=N, for example: --size height=224")
        out[name] = int(number)
    return out
