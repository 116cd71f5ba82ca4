"""Choosing among measured points: what is allowed, what nothing beats, what is best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Objective = Literal["energy", "latency"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One setting and what it gave. `streams` calls run at a time, each of `batch` samples.

    Latencies are of one call. Energy and power are those of the first sensor that covers the device, None without one.
    `power` is the power mode or cap, "" where it was left as it is.
    """

    variant: str
    batch: int
    threads: int
    streams: int
    power: str = ""
    calls: int
    p50_s: float
    p99_s: float
    samples_per_s: float
    joules_per_sample: float | None = None
    uncertainty_j: float | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] = ()


def setting_text(variant: str, batch: int, threads: int, streams: int) -> str:
    """`int8, batch 4, 2 threads, 1 stream`."""
    plural = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((threads, "thread"), (streams, "stream"))]
    return f"{variant}, batch {batch}, {', '.join(plural)}"


def allowed(points: Sequence[Point], *, max_p99_s: float | None, max_power_w: float | None) -> list[Point]:
    """The points within the limits; with a limit of power those whose power is known."""
    return [
        p
        for p in points
        if (max_p99_s is None or p.p99_s <= max_p99_s)
        and (max_power_w is None or (p.power_w is not None and p.power_w <= max_power_w))
    ]


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points of which no other has both a lower p99 and less energy a sample (or more throughput), by p99.

    Where energy was measured for all, it is the second axis, else throughput is.
    """
    by_energy = all(p.joules_per_sample is not None for p in points)
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.p99_s, _cost(p, by_energy))):
        if not front or _cost(p, by_energy) < _cost(front[-1], by_energy):
            front.append(p)
    return front


def best(points: Sequence[Point], objective: Objective) -> Point | None:
    """The point with the least energy a sample, or the lowest p99; None without points."""
    if objective == "energy":
        known = [p for p in points if p.joules_per_sample is not None]
        return min(known, key=lambda p: (_cost(p, True), p.p99_s), default=None)
    return min(points, key=lambda p: (p.p99_s, -p.samples_per_s), default=None)


def as_good(points: Sequence[Point], chosen: Point) -> int:
    """How many other points take no more energy than `chosen`, as far as the uncertainties tell."""
    if chosen.joules_per_sample is None or chosen.uncertainty_j is None:
        return 0
    most_j = chosen.joules_per_sample + chosen.uncertainty_j
    return sum(
        p.joules_per_sample - p.uncertainty_j <= most_j
        for p in points
        if p is not chosen and p.joules_per_sample is not None and p.uncertainty_j is not None
    )


def _cost(p: Point, by_energy: bool) -> float:
    return p.joules_per_sample if by_energy and p.joules_per_sample is not None else -p.samples_per_s
