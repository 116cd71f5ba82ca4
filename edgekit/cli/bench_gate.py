"""`edgekit bench --baseline OLD.json --fail-if "energy>+5%"`: reads the baseline, checks it, and says what changed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.bench import BenchReport, Comparison
from edgekit.bench.gate import TRIALS, check_conditions, compare, parse_limits, read_baseline
from edgekit.bench.inputs import bench_inputs
from edgekit.bench.runner import this_machine
from edgekit.cli.output import print_table, print_text
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.runtime.ort import physical_cores
from edgekit.telemetry import Found


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --baseline and --fail-if."""
    gate = parser.add_argument_group("regression gate", "see docs/energy.md")
    gate.add_argument("--baseline", type=Path, metavar="OLD.json", help="compare with this report of edgekit bench")
    gate.add_argument(
        "--fail-if",
        metavar="LIMITS",
        help='exit 1 if surely worse: "energy>+5%%,p99>+10%%" (energy, p50, p90, p99, mean, throughput<-5%%)',
    )


@dataclass(frozen=True)
class Gate:
    """An older report that fits this run, and how much worse each metric may be."""

    path: Path
    baseline: BenchReport
    limits: Mapping[str, float]
    variants: tuple[str, ...]
    trials: int

    @property
    def energy(self) -> bool:
        """Whether energy is to be measured in as many windows."""
        return "energy" in self.limits

    def judge(self, report: BenchReport) -> BenchReport:
        """`report` with its comparisons. Raises UsageError if they cannot be made."""
        found = compare(self.baseline, report, self.limits)
        return msgspec.structs.replace(report, baseline=self.path.name, comparisons=found)


def gate_of(args: argparse.Namespace, package: Package, sizes: Mapping[str, int], found: Found) -> Gate | None:
    """The gate that the arguments ask for, checked before anything is measured; None without --baseline.

    Raises:
        UsageError: a baseline or limits that cannot be used here.
    """
    if args.baseline is None:
        if args.fail_if:
            raise UsageError("--fail-if needs something to compare with. Add --baseline OLD.json.")
        return None
    limits = parse_limits(args.fail_if) if args.fail_if else {}
    own = package.path / "reports" / "bench.json"
    if own.exists() and args.baseline.exists() and own.samefile(args.baseline):
        raise UsageError(f"This run would replace '{own}', which is its baseline. Copy it elsewhere first.")
    baseline = read_baseline(args.baseline)
    variants = tuple(dict.fromkeys(args.variant or (v.id for v in baseline.variants)))
    check_conditions(
        baseline,
        machine=this_machine(),
        package=package.path.name,
        batch=args.batch,
        threads=args.threads or physical_cores(),
        inputs=bench_inputs(package, sizes).source,
        variants=variants,
        limits=limits,
    )
    if "energy" in limits and not found.sensors:
        raise UsageError(f"--fail-if names energy, and nothing measures it here. {' '.join(found.reasons)}".strip())
    return Gate(args.baseline, baseline, limits, variants, args.trials or TRIALS)


def print_gate(report: BenchReport) -> None:
    """What changed, and whether it is too much."""
    print_text("")
    columns = ["variant", "metric", "before>", "now>", "change %>", "95 % interval>", "limit %>", "verdict"]
    print_table(columns, [_row(c) for c in report.comparisons])
    worse = [c for c in report.comparisons if c.verdict == "worse"]
    unclear = [c for c in report.comparisons if c.verdict == "unclear"]
    fewest = min(c.trials for c in report.comparisons)
    print_text(f"\nbootstrap over {fewest} trials of each; slow changes of the machine between the two are not in it")
    for c in unclear:
        print_text(
            f"{c.variant} {c.metric}: past the limit, but within what chance explains; raise --trials or --seconds"
        )
    for c in worse:
        print_text(
            f"{c.variant} {c.metric}: worse by at least {100 * abs(_sure(c)):.2g} %, limit {_percent(c.limit)} %"
        )


def failed(report: BenchReport) -> bool:
    """Whether a metric is surely past its limit."""
    return any(c.verdict == "worse" for c in report.comparisons)


def _sure(c: Comparison) -> float:
    return c.low if c.limit is not None and c.limit >= 0 and c.low > c.limit else c.high


def _row(c: Comparison) -> list[object]:
    scale, unit = {"s": (1e3, "ms"), "J": (1e3, "mJ"), "samples/s": (1.0, "1/s")}[c.unit]
    values = [f"{scale * v:.3g}" if scale * v < 1000 else f"{scale * v:.0f}" for v in (c.old, c.new)]
    span = f"{_percent(c.low)} to {_percent(c.high)}"
    return [c.variant, f"{c.metric} {unit}", *values, _percent(c.change), span, _percent(c.limit), c.verdict]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:+.2g}" if abs(share) < 1 else f"{100 * share:+.0f}"
