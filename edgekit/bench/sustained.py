"""How fast a variant stays once the machine is warm: burst and sustained throughput, what slows it and when."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import __version__
from edgekit.bench.heat import Heating, fit_heating, is_flat
from edgekit.bench.measure import Contender
from edgekit.bench.report import Machine
from edgekit.bench.stats import percentile
from edgekit.telemetry import Monitor, Sampler, Snapshot

BURST_S = 5.0
"""What counts as burst: the first seconds, at most a fifth of the run."""
SLOWED = 0.95
"""A run is slower for good once its throughput stays below this share of the burst's."""
STEADY_SHARE = 0.02
"""In steady state throughput differs by less than this between the halves of the last third."""
EARLIEST_S = 60.0
"""A run is never called steady before this."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Calls between `start_s` and `end_s` since the load began: samples a second, and latencies in seconds."""

    start_s: float
    end_s: float
    samples_per_s: float
    p50_s: float
    p99_s: float


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine showed `t_s` seconds after the load began, by name; what was not measured has no entry."""

    t_s: float
    power_w: dict[str, float]
    temp_c: dict[str, float]
    clock_hz: dict[str, float]
    throttled: tuple[str, ...]


class Sustained(msgspec.Struct, frozen=True, kw_only=True):
    """One variant under load until the machine is warm.

    `ended` is "steady" or "time". `throttled_after_s` is when the machine first said that it slows down, `causes` the
    share of the run for each cause; `slowed_after_s` when throughput fell below 95 % of the burst's for good. All are
    None or empty where it did not happen, or (see `missing`) nothing could tell. `heating` is fitted up to the first
    throttling; `limit_c` is the first trip point of its zone. Powers are by scope.
    """

    schema: int = 1
    edgekit: str
    package: str
    created: str
    machine: Machine
    variant: str
    device: str
    batch: int
    threads: int
    duration_s: float
    ended: str
    burst_per_s: float
    sustained_per_s: float
    p99_s: float
    throttled_after_s: float | None
    slowed_after_s: float | None
    causes: dict[str, float]
    heating: Heating | None
    heating_reason: str | None
    limit_c: float | None
    burst_w: dict[str, float]
    sustained_w: dict[str, float]
    missing: tuple[str, ...]
    slices: tuple[Slice, ...]
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Run:
    """The raw course of a run: what was done, what was read, why it ended."""

    slices: tuple[Slice, ...]
    readings: tuple[Reading, ...]
    trips_c: dict[str, float]
    reasons: tuple[str, ...]
    ended: str


def run_sustained(
    contender: Contender,
    *,
    samples_per_call: int,
    duration_s: float,
    root: Path = Path("/"),
    earliest_s: float = EARLIEST_S,
    say: Callable[[str], None] = lambda _text: None,
) -> Run:
    """Load the machine with `contender` for `duration_s`, or until temperatures and throughput are steady.

    Without any temperature it runs the whole time, as throughput alone does not tell what is still to come.
    """
    slice_s = min(1.0, duration_s / 60)
    monitor = Monitor(root)
    slices: list[Slice] = []
    interval_s = max(min(0.5, slice_s / 2), duration_s / 4000)  # bounds the memory of a long run
    with Sampler(monitor.read, interval_s=interval_s, keep=8000) as sampler:
        begun = time.monotonic()
        ended, told_s = "time", 0.0
        while (now_s := time.monotonic() - begun) < duration_s:
            latencies = contender.slice(slice_s)
            end_s = time.monotonic() - begun
            slices.append(
                Slice(
                    start_s=now_s,
                    end_s=end_s,
                    samples_per_s=samples_per_call * len(latencies) / (end_s - now_s),
                    p50_s=percentile(latencies, 0.5),
                    p99_s=percentile(latencies, 0.99),
                )
            )
            if end_s - told_s >= 30:
                say(_line(slices[-1], sampler.latest))
                told_s = end_s
            if end_s >= earliest_s and len(slices) % 5 == 0 and _steady(slices, _readings(sampler.history(), begun)):
                ended = "steady"
                break
        history = sampler.history()
    reasons = monitor.reasons
    if not any(s.throttles or any(g.throttles for g in s.gpus) for s in history):
        reasons += ("Nothing on this machine tells whether it is slowed down.",)
    return Run(tuple(slices), _readings(history, begun), _trips(history), reasons, ended)


def summary_of(
    run: Run, *, package: str, created: str, machine: Machine, contender: Contender, batch: int, threads: int
) -> Sustained:
    """The figures of a run."""
    slices, readings = run.slices, run.readings
    duration_s = slices[-1].end_s
    burst_s, tail_s = min(BURST_S, duration_s / 5), duration_s * 0.8
    burst = statistics.median(s.samples_per_s for s in slices if s.start_s < burst_s)
    tail = [s for s in slices if s.start_s >= tail_s] or [slices[-1]]
    throttled = next((r.t_s for r in readings if r.throttled), None)
    causes = dict.fromkeys(c for r in readings for c in r.throttled)
    heating, reason, limit = _heating(run, throttled)
    missing = [*run.reasons]
    for what, found in (
        ("power", any(r.power_w for r in readings)),
        ("temperature", any(r.temp_c for r in readings)),
        ("clock", any(r.clock_hz for r in readings)),
    ):
        if not found:
            missing.append(f"No {what} can be read on this machine.")
    return Sustained(
        edgekit=__version__,
        package=package,
        created=created,
        machine=machine,
        variant=contender.variant,
        device=contender.session.device,
        batch=batch,
        threads=threads,
        duration_s=duration_s,
        ended=run.ended,
        burst_per_s=burst,
        sustained_per_s=statistics.median(s.samples_per_s for s in tail),
        p99_s=statistics.median(s.p99_s for s in tail),
        throttled_after_s=throttled,
        slowed_after_s=_slowed_after(slices, burst),
        causes={c: sum(c in r.throttled for r in readings) / len(readings) for c in causes},
        heating=heating,
        heating_reason=reason,
        limit_c=limit,
        burst_w=_powers([r for r in readings if r.t_s <= burst_s]),
        sustained_w=_powers([r for r in readings if r.t_s >= tail_s]),
        missing=tuple(missing),
        slices=slices,
        readings=readings,
    )


def _readings(history: Sequence[Snapshot], begun: float) -> tuple[Reading, ...]:
    return tuple(_reading(s, s.t_s - begun) for s in history if s.t_s >= begun)


def _reading(now: Snapshot, t_s: float) -> Reading:
    temps = {z.name: z.temp_c for z in now.zones} | {f"GPU {g.name}": g.temp_c for g in now.gpus}
    clocks = {c.name: c.now_hz for c in (*now.cpu_clocks, *now.gpu_clocks)} | {
        f"GPU {g.name}": g.clock_hz for g in now.gpus
    }
    return Reading(
        t_s=t_s,
        power_w={p.scope: p.power_w for p in now.powers if p.power_w is not None},
        temp_c={n: v for n, v in temps.items() if v is not None},
        clock_hz={n: v for n, v in clocks.items() if v is not None},
        throttled=now.throttled,
    )


def _trips(history: Sequence[Snapshot]) -> dict[str, float]:
    """The first temperature of each zone that slows what computes, or stops the machine."""
    trips: dict[str, float] = {}
    for now in history[-1:]:
        for zone in now.zones:
            if zone.computes and zone.temp_c is not None and zone.headroom_c is not None:
                trips[zone.name] = zone.temp_c + zone.headroom_c
        trips |= {f"GPU {g.name}": g.trips[0].temp_c for g in now.gpus if g.trips}
    return trips


def _hottest(readings: Sequence[Reading], trips: dict[str, float]) -> str | None:
    """The zone that is nearest to its limit at the end, or the hottest where none has one."""
    last = readings[-1].temp_c if readings else {}
    limited = {n: trips[n] - t for n, t in last.items() if n in trips}
    if limited:
        return min(limited, key=lambda n: limited[n])
    return max(last, key=lambda n: last[n]) if last else None


def _steady(slices: Sequence[Slice], readings: Sequence[Reading]) -> bool:
    window_s = slices[-1].end_s / 3
    names = {n for r in readings[-1:] for n in r.temp_c}
    if not names:
        return False
    for name in names:
        points = [(r.t_s, r.temp_c[name]) for r in readings if name in r.temp_c]
        if not is_flat([t for t, _ in points], [c for _, c in points], window_s):
            return False
    last = [s.samples_per_s for s in slices if s.start_s >= slices[-1].end_s - window_s]
    before, after = last[: len(last) // 2], last[len(last) // 2 :]
    if not before:
        return False
    middle = statistics.median(before)
    return abs(statistics.median(after) - middle) <= STEADY_SHARE * middle


def _slowed_after(slices: Sequence[Slice], burst: float) -> float | None:
    """When throughput fell below `SLOWED` of the burst's and stayed there: the start of the last slow stretch."""
    rates = [s.samples_per_s for s in slices]
    smooth = [statistics.median(rates[max(0, i - 2) : i + 3]) for i in range(len(rates))]  # one slow slice is no fall
    slow_from = len(rates)
    while slow_from > 0 and smooth[slow_from - 1] < SLOWED * burst:
        slow_from -= 1
    return slices[slow_from].start_s if slow_from <= len(slices) - 3 else None


def _heating(run: Run, throttled_s: float | None) -> tuple[Heating | None, str | None, float | None]:
    """The curve of the zone that matters, up to the first throttling, since the load is another one after it."""
    zone = _hottest(run.readings, run.trips_c)
    if zone is None:
        return None, "no temperature can be read on this machine", None
    limit = run.trips_c.get(zone)
    points = [(r.t_s, r.temp_c[zone]) for r in run.readings if zone in r.temp_c]
    points = [p for p in points if throttled_s is None or p[0] < throttled_s]
    fit = fit_heating(zone, [t for t, _ in points], [c for _, c in points])
    if isinstance(fit, str):
        return None, fit + (" (before the machine throttled)" if throttled_s is not None else ""), limit
    return fit, None, limit


def _powers(readings: Sequence[Reading]) -> dict[str, float]:
    scopes = dict.fromkeys(scope for r in readings for scope in r.power_w)
    return {s: statistics.fmean(r.power_w[s] for r in readings if s in r.power_w) for s in scopes}


def _line(last: Slice, now: Snapshot | None) -> str:
    parts = [f"{last.end_s:.0f} s: {last.samples_per_s:.4g} samples/s"]
    if now is not None:
        temps = [z.temp_c for z in now.zones if z.temp_c is not None] + [g.temp_c for g in now.gpus if g.temp_c]
        parts += [f"{max(temps):.1f} °C"] if temps else []
        parts += [f"{p.power_w:.1f} W {p.scope}" for p in now.powers if p.power_w is not None]
        parts += [f"slowed by {c}" for c in now.throttled]
    return ", ".join(parts)
