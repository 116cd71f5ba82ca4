"""What `edgekit bench` prints: latencies, throughput, and what an inference and a right answer cost."""

from __future__ import annotations

from edgekit.bench import BenchReport, Joules, VariantBench
from edgekit.cli.output import print_table, print_text


def print_report(report: BenchReport, *, energy: bool) -> None:
    """The report as tables and sentences; with `energy` a table of its own for that."""
    short = not energy and any(v.energy for v in report.variants)
    columns = ["variant", "p50 ms>", "p90 ms>", "p99 ms>", "max ms>", "calls>", "speed-up>", "samples/s>", "at batch>"]
    columns += ["mJ/inference>"] if short else []
    print_table(columns, [_row(v, report, short) for v in report.variants])
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    print_text(
        f"\nlatency at batch {report.batch}, {threads}, {report.inputs}; {report.machine.cpu}, "
        f"{report.variants[0].device.partition(',')[0]}"
    )
    print_text(f"speed-up over {report.reference}: median of rounds measured side by side (quartiles)")
    if energy:
        _print_energy(report)
    else:
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
        row.append(millijoules(first.joules_per_inference, first.uncertainty_j) if first else None)
    return row


def _print_energy(report: BenchReport) -> None:
    """One row for each variant and sensor; sentences for what is absent, each once."""
    print_text("")
    measured = any(v.energy for v in report.variants)
    if measured:
        _print_joules(report)
    for scope in dict.fromkeys(f"{j.source}: {j.scope}" for v in report.variants for j in v.energy):
        print_text(scope)
    for v in report.variants:
        if v.correct is not None and v.energy:
            share = f"{v.correct.metric} {v.correct.share:.4g} on {v.correct.samples} samples, {v.correct.origin}"
            print_text(f"mJ/correct of {v.id}: {share}")
    absent: dict[str, list[str]] = {}
    for v in report.variants:
        if v.energy_reason:
            absent.setdefault(f"energy not measured: {v.energy_reason}", []).append(v.id)
        if v.correct_reason and measured:
            absent.setdefault(f"no energy per correct prediction: {v.correct_reason}", []).append(v.id)
    for sentence, variants in absent.items():
        print_text(sentence if len(variants) == len(report.variants) else f"{', '.join(variants)}: {sentence}")


def _print_joules(report: BenchReport) -> None:
    rows: list[list[object]] = []
    for v in report.variants:
        rows += [_energy_row(v.id, j) for j in v.energy] or [[v.id, *[None] * 6]]
    columns = ["variant", "mJ/inference>", "mJ/correct>", "running W>", "idle W>", "active W>", "by"]
    print_table(columns, rows)
    print_text(
        f"\nenergy of one call at batch {report.batch}, idle power included, ± 95 % but for the sensor's own scale"
    )


def _energy_row(variant: str, j: Joules) -> list[object]:
    per_correct = None
    if j.joules_per_correct is not None and j.correct_uncertainty_j is not None:
        per_correct = millijoules(j.joules_per_correct, j.correct_uncertainty_j)
    watts = [None if w is None else f"{w:.3g}" for w in (j.power_w, j.idle_w, j.active_w)]
    return [variant, millijoules(j.joules_per_inference, j.uncertainty_j), per_correct, *watts, j.source]


def millijoules(value_j: float, uncertainty_j: float) -> str:
    """`4.21 ± 0.03`, in millijoules."""
    return f"{1e3 * value_j:.3g} ± {1e3 * uncertainty_j:.1g}"


def _short(value: float) -> str:
    """Three digits, and all digits of large numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _energy_line(report: BenchReport) -> str:
    measured = [j for v in report.variants for j in v.energy]
    if measured:
        return f"energy: {measured[0].scope}, by {measured[0].source}, idle power included"
    return f"energy: not measured. {report.variants[0].energy_reason}"
