"""`edgekit bench --scenario offline`: MLPerf's load generator drives one variant and judges the run."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgekit.bench.inputs import bench_inputs
from edgekit.bench.loadgen import SCENARIOS, LoadGenResult, run_loadgen
from edgekit.cli.output import note, print_json, print_text
from edgekit.errors import EdgekitError, StorageError, UsageError
from edgekit.package import Package
from edgekit.runtime.devices import one_device
from edgekit.runtime.select import open_session

_MAX_BATCH = 32
_OWN = ("min_duration", "target_qps", "target_latency_ms", "streams")


def add_scenario_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --scenario and what belongs to it."""
    group = parser.add_argument_group("MLPerf scenarios", "by MLPerf's own load generator; see docs/energy.md")
    group.add_argument("--scenario", choices=SCENARIOS, help="drive one variant so; LoadGen says VALID or INVALID")
    group.add_argument("--min-duration", type=float, metavar="S", help="seconds, at least (MLPerf's rule: 600)")
    group.add_argument("--target-qps", type=float, metavar="N", help="queries a second that the server scenario sends")
    group.add_argument(
        "--target-latency-ms", type=float, metavar="MS", help="p99 that the server scenario allows (100)"
    )
    group.add_argument("--streams", type=int, metavar="N", help="calls at a time (default 1)")


def check_no_scenario(args: argparse.Namespace) -> None:
    """Raises UsageError if an argument of --scenario is there without it."""
    given = [name for name in _OWN if getattr(args, name) is not None]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to an MLPerf scenario. Add --scenario.")


def run_scenario_command(args: argparse.Namespace, package: Package, sizes: Mapping[str, int]) -> int:
    """Carry it out; returns 1 if LoadGen calls the run invalid or the reports could not be written."""
    _check(args)
    inputs = bench_inputs(package, sizes)
    variant = args.variant[0] if args.variant else None
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-loadgen-") as folder,
        open_session(
            package, variant=variant, threads=args.threads, device=one_device(args.device, command="bench")
        ) as session,
    ):
        note(f"{args.scenario} of {session.variant} by LoadGen, {args.min_duration or 600:g} s at least")
        try:
            result = run_loadgen(
                session,
                inputs,
                scenario=args.scenario,
                folder=Path(folder),
                min_duration_s=args.min_duration,
                target_qps=args.target_qps,
                target_latency_s=None if args.target_latency_ms is None else args.target_latency_ms / 1000,
                max_batch=args.batch or _MAX_BATCH,
                streams=args.streams or 1,
            )
        except KeyboardInterrupt:
            # LoadGen's threads cannot be ended, and would call into an interpreter that shuts down.
            shutil.rmtree(folder, ignore_errors=True)
            note("edgekit: interrupted; no result was written")
            os._exit(130)
        code, result = _write(package, result, Path(folder))
        device = session.device
    if args.json:
        print_json(result)
    else:
        _print(result, session.variant, device, real=inputs.source)
    return code or (0 if result.valid else EdgekitError.exit_code)


def _check(args: argparse.Namespace) -> None:
    if args.variant and len(args.variant) != 1:
        raise UsageError("--scenario drives one variant; name it with --variant ID.")
    if args.baseline or args.energy or args.sustained:
        raise UsageError("--scenario is a run of its own; leave --baseline, --energy and --sustained to another.")
    for name in (*_OWN, "batch"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e9:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, got {value:g}.")
    if args.scenario == "server" and args.target_qps is None:
        raise UsageError("--scenario server needs the queries a second to send, for example: --target-qps 100")


def _write(package: Package, result: LoadGenResult, folder: Path) -> tuple[int, LoadGenResult]:
    """Copy LoadGen's logs into reports/, as they are, each named after the scenario."""
    written = []
    try:
        for log in sorted(folder.iterdir()):
            written.append(package.write_report(f"{result.scenario}-{log.name}", log.read_bytes()))
        result = msgspec.structs.replace(result, logs=tuple(p.name for p in written))
        document = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
        written.append(package.write_report(f"{result.scenario}.json", document))
    except StorageError as error:
        note(f"edgekit: {error}")
        return EdgekitError.exit_code, result
    note(f"wrote {', '.join(str(p) for p in written)}")
    return 0, result


def _print(result: LoadGenResult, variant: str, device: str, *, real: str) -> None:
    unit = f"{1e3 * result.value:.4g} ms" if "latency" in result.metric else f"{result.value:.5g}"
    print_text(f"{result.scenario} of {variant}, {device}")
    print_text(f"{result.metric}: {unit}")
    print_text(f"LoadGen {result.loadgen} says: {'VALID' if result.valid else 'INVALID'}")
    for problem in result.problems:
        print_text(f"  {problem}")
    print_text(f"{real}; a run by LoadGen is no MLPerf submission: accuracy, data and compliance are not checked")
