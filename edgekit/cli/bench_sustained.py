"""`edgekit bench --sustained 10m`: one variant under load until the machine is warm."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial

from edgekit.bench.inputs import bench_inputs
from edgekit.bench.measure import Contender
from edgekit.bench.runner import this_machine
from edgekit.bench.sustained import Sustained, run_sustained, summary_of
from edgekit.bench.sustained_plot import sustained_png
from edgekit.cli.output import note, print_json, print_text
from edgekit.cli.reports import write_reports
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.runtime.devices import one_device
from edgekit.runtime.ort import physical_cores
from edgekit.runtime.select import open_session
from edgekit.telemetry.rails import short_scope

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHORTEST_S, _LONGEST_S = 5.0, 86_400.0


def seconds_of(text: str) -> float:
    """`10m`, `90s`, `1h` or a number of seconds. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"--sustained {text} is not usable; expected a time, for example: --sustained 10m")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise UsageError(f"--sustained {text} is not usable; expected {_SHORTEST_S:.0f} seconds to 24 hours.")
    return seconds


def run_sustained_command(args: argparse.Namespace, package: Package, sizes: Mapping[str, int]) -> int:
    """Carry it out; returns 1 if the reports could not be written."""
    duration_s = seconds_of(args.sustained)
    if args.variant and len(args.variant) != 1:
        raise UsageError("--sustained looks at one variant; name it with --variant ID.")
    if args.baseline or args.energy:
        raise UsageError("--sustained is a run of its own; leave --baseline and --energy to another.")
    inputs = bench_inputs(package, sizes)
    if not inputs.dynamic and args.batch != 1:
        raise UsageError(f"'{package.path.name}' has a fixed batch; it cannot be measured at batch {args.batch}.")
    threads = args.threads or physical_cores()
    device = one_device(args.device, command="bench")
    variant = args.variant[0] if args.variant else None
    with open_session(package, variant=variant, threads=threads, device=device) as session:
        contender = Contender(session.variant, session, inputs.feeds(args.batch))
        note(f"load by {session.variant} at batch {args.batch}, at most {duration_s:.0f} s, less once steady")
        contender.call()
        run = run_sustained(contender, samples_per_call=args.batch, duration_s=duration_s, root=args.root, say=note)
        report = summary_of(
            run,
            package=package.path.name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=this_machine(),
            contender=contender,
            batch=args.batch,
            threads=threads,
        )
    code = write_reports(package, "sustained", report, picture=None if args.no_plot else partial(sustained_png, report))
    if args.json:
        print_json(report)
    else:
        _print(report)
    return code


def _print(r: Sustained) -> None:
    share = r.sustained_per_s / r.burst_per_s
    print_text(f"{r.package} {r.variant}, batch {r.batch}, {r.device}")
    why = "temperatures and throughput were steady" if r.ended == "steady" else "the time was over"
    print_text(f"ran         {r.duration_s:.0f} s, until {why}")
    print_text(f"burst       {r.burst_per_s:.4g} samples/s{_watts(r.burst_w)}")
    print_text(f"sustained   {r.sustained_per_s:.4g} samples/s ({100 * share:.0f} % of burst){_watts(r.sustained_w)}")
    print_text(f"p99         {1e3 * r.p99_s:.3g} ms sustained")
    if r.slowed_after_s is not None:
        print_text(f"slower      for good after {r.slowed_after_s:.0f} s (below 95 % of burst)")
    if r.throttled_after_s is not None:
        causes = ", ".join(f"{c} ({100 * s:.0f} % of the time)" for c, s in r.causes.items())
        print_text(f"throttled   after {r.throttled_after_s:.0f} s by {causes}")
    elif not any("slowed down" in sentence for sentence in r.missing):
        print_text("throttled   no cause was seen")
    if r.heating is not None:
        h = r.heating
        limit = "" if r.limit_c is None else f"; limit {r.limit_c:.0f} °C"
        tends = f"tends to {h.steady_c:.1f} ± {h.steady_error_c:.1g} °C"
        print_text(f"heat        {h.zone} {tends}, time constant {h.tau_s:.3g} ± {h.tau_error_s:.1g} s{limit}")
    else:
        print_text(f"heat        no curve: {r.heating_reason}")
    for sentence in r.missing:
        print_text(f"missing     {sentence}")


def _watts(powers: dict[str, float]) -> str:
    return "".join(f", {w:.3g} W {short_scope(scope)}" for scope, w in powers.items())
