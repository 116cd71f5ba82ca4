"""A benchmark against an older one: has a variant become worse by more than is allowed, beyond what chance explains?"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.bench.report import BenchReport, Comparison, Joules, Machine, VariantBench
from edgekit.bench.stats import student_t95
from edgekit.errors import UsageError

FEWEST_TRIALS, TRIALS = 5, 10
"""Trials below which no interval is given, and those that a gate makes by default."""
RESAMPLES = 10_000
_SEED = 0
_LIMIT = re.compile(r"(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class _Metric:
    """`better` is the direction of improvement; `middle` makes one figure of all trials."""

    unit: str
    better: Literal["less", "more"]
    middle: Callable[..., Any]


METRICS: Mapping[str, _Metric] = {
    "energy": _Metric("J", "less", np.mean),
    "p50": _Metric("s", "less", np.median),
    "p90": _Metric("s", "less", np.median),
    "p99": _Metric("s", "less", np.median),
    "mean": _Metric("s", "less", np.median),
    "throughput": _Metric("samples/s", "more", np.median),
}
"""What can be compared. Latencies and throughput are at the latency's batch; energy is that of one inference."""


def parse_limits(text: str) -> dict[str, float]:
    """`energy>+5%,p99>+10%,throughput<-3%` as {"energy": 0.05, "p99": 0.1, "throughput": -0.03}.

    Raises:
        UsageError: an unknown metric, or a limit that no worsening could pass.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = _LIMIT.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"--fail-if '{part.strip()}' is not usable; expected METRIC>+N%, as in: energy>+5%,p99>+10%"
            )
        name, sign, share = match[1].lower(), match[2], float(match[3]) / 100
        if name not in METRICS:
            raise UsageError(f"--fail-if names '{name}', which is not measured; expected one of {', '.join(METRICS)}.")
        wanted = ">" if METRICS[name].better == "less" else "<"
        if sign != wanted or (share < 0 if wanted == ">" else share > 0):
            example = f"{name}>+5%" if wanted == ">" else f"{name}<-5%"
            raise UsageError(f"--fail-if '{part.strip()}' fails on what is no worsening; expected {example}.")
        if name in limits:
            raise UsageError(f"--fail-if names {name} twice; give one limit for each metric.")
        limits[name] = share
    return limits


def read_baseline(path: Path) -> BenchReport:
    """A report that `edgekit bench` wrote, or printed with --json.

    Raises:
        UsageError: the file is absent, is no report, or its trials were not kept.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=BenchReport)
    except OSError as error:
        raise UsageError(f"Baseline '{path}' cannot be read ({error.strerror}).") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"Baseline '{path}' is no report of edgekit bench ({error}). Make one: edgekit bench X.edge --json"
        ) from error
    for v in report.variants:
        if len(v.trials) < FEWEST_TRIALS:
            raise UsageError(
                f"Baseline '{path}' has {len(v.trials)} trials of '{v.id}', and an interval needs {FEWEST_TRIALS}. "
                f"Measure it again: edgekit bench {report.package} --trials {TRIALS} --json"
            )
    return report


def check_conditions(
    baseline: BenchReport,
    *,
    machine: Machine,
    package: str,
    batch: int,
    threads: int,
    inputs: str,
    variants: Sequence[str],
    limits: Mapping[str, float],
) -> None:
    """Refuse, before anything is measured, what cannot be compared.

    Raises:
        UsageError: another machine, package, batch, number of threads or input, or a figure that the baseline lacks.
    """
    old = baseline.machine
    pairs: list[tuple[str, object, object]]
    pairs = [
        ("machine", _machine_text(old), _machine_text(machine)),
        ("power mode", old.power_mode or "none", machine.power_mode or "none"),
        ("package", baseline.package, package),
        ("batch", baseline.batch, batch),
        ("threads", baseline.threads, threads),
        ("inputs", baseline.inputs, inputs),
    ]
    for what, before, now in pairs:
        if before != now:
            raise UsageError(
                f"The baseline was measured with another {what} ({before}; now {now}), so figures cannot be compared. "
                "Measure the baseline here, under the same conditions."
            )
    for name in variants:
        v = next((v for v in baseline.variants if v.id == name), None)
        if v is None:
            known = ", ".join(v.id for v in baseline.variants)
            raise UsageError(f"The baseline has no variant '{name}'; it has {known}.")
        if "energy" in limits and not v.energy:
            raise UsageError(
                f"The baseline has no energy of '{name}' ({v.energy_reason or 'not measured'}). "
                "Measure it with --energy where a sensor is, or leave energy out of --fail-if."
            )


def compare(baseline: BenchReport, new: BenchReport, limits: Mapping[str, float]) -> tuple[Comparison, ...]:
    """Every metric in `limits` (or all that both have, without a verdict) of every variant of `new`.

    Raises:
        UsageError: the two ran on different devices, or their energies have no scope in common.
    """
    rng = np.random.default_rng(_SEED)
    out = []
    for v in new.variants:
        old = baseline.variant(v.id)
        if _device(old) != _device(v):
            raise UsageError(
                f"'{v.id}' ran on {_device(old)} in the baseline and on {_device(v)} now. Name it with --device."
            )
        for name in limits or METRICS:
            values = _values(name, old, v, required=name in limits)
            if values is not None:
                out.append(_compared(v.id, name, *values, limits.get(name), rng))
    return tuple(out)


_Series = tuple[list[float], list[float]]
"""One figure a trial, and the standard error of each."""


def _values(name: str, old: VariantBench, new: VariantBench, *, required: bool) -> tuple[_Series, _Series] | None:
    if name != "energy":
        field = "samples_per_s" if name == "throughput" else f"{name}_s"
        return tuple(([getattr(t, field) for t in v.trials], [0.0] * len(v.trials)) for v in (old, new))  # type: ignore[return-value]
    for j in new.energy:
        for k in old.energy:
            if (j.source, j.scope) == (k.source, k.scope) and min(len(j.trials), len(k.trials)) >= FEWEST_TRIALS:
                return _energies(k), _energies(j)
    if not required:
        return None
    sides = ["; ".join(f"{j.scope} by {j.source}, {len(j.trials)} trials" for j in v.energy) for v in (old, new)]
    raise UsageError(
        f"Energy of '{new.id}' cannot be compared: the baseline has {sides[0] or 'none'}, now there is "
        f"{sides[1] or f'none ({new.energy_reason})'}; expected the same scope and {FEWEST_TRIALS} trials of both."
    )


def _energies(j: Joules) -> _Series:
    return [t.joules_per_inference for t in j.trials], [t.uncertainty_j / 1.959964 for t in j.trials]


def _compared(
    variant: str, name: str, old: _Series, new: _Series, limit: float | None, rng: np.random.Generator
) -> Comparison:
    metric = METRICS[name]
    before, after = (float(metric.middle(s[0])) for s in (old, new))
    low, high = interval(old, new, metric.middle, rng)
    change = after / before - 1
    verdict: Literal["ok", "worse", "unclear", "shown"] = "shown"
    if limit is not None:
        past, surely = (change > limit, low > limit) if metric.better == "less" else (change < limit, high < limit)
        verdict = "worse" if surely else "unclear" if past else "ok"
    count = min(len(old[0]), len(new[0]))
    return Comparison(
        variant=variant,
        metric=name,
        unit=metric.unit,
        old=before,
        new=after,
        change=change,
        low=low,
        high=high,
        limit=limit,
        verdict=verdict,
        trials=count,
    )


def interval(old: _Series, new: _Series, middle: Callable[..., Any], rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of new / old - 1, by bootstrap over trials.

    Trials are drawn with replacement, each with its own measurement error. The percentiles are widened for few trials
    as Hesterberg (2015, "What teachers should know about the bootstrap", 5.3) shows, since plain ones are too narrow.
    """
    drawn = []
    for values, errors in (old, new):
        picks = rng.integers(0, len(values), (RESAMPLES, len(values)))
        noise = rng.standard_normal(picks.shape) * np.asarray(errors)[picks]
        drawn.append(middle(np.asarray(values)[picks] + noise, axis=1))
    ratios = drawn[1] / drawn[0] - 1
    count = min(len(old[0]), len(new[0]))
    wide = math.sqrt(count / (count - 1)) * student_t95(count - 1)
    tail = statistics.NormalDist().cdf(-wide)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _machine_text(machine: Machine) -> str:
    return ", ".join(filter(None, (machine.cpu, machine.architecture, f"{machine.cores} cores", machine.gpu)))


def _device(v: VariantBench) -> str:
    """Backend and device without the release: a newer ONNX Runtime may be just what is to be compared."""
    backend, _, rest = v.device.partition(",")
    return f"{backend.rpartition(' ')[0] or backend},{rest.rpartition(',')[0] or rest}"
