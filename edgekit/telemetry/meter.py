"""From samples to joules, with an uncertainty, or with the reason why no figure can be given. No clock, no I/O."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.telemetry.sensors import Sample, Source

RESOLVE = 10.0
"""A window shorter than this many update periods of its sensor gives no figure: its edges alone are 10 % of it."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of a window: the true value lies within `energy_j` ± `uncertainty_j` in 95 % of cases.

    Edges and sampling are in the uncertainty; an error of the sensor's own scale (its gain) is not.
    """

    energy_j: float
    uncertainty_j: float
    duration_s: float
    source: Source
    scope: str

    @property
    def power_w(self) -> float:
        """Mean power of the window."""
        return self.energy_j / self.duration_s


@dataclass(frozen=True, slots=True)
class Active:
    """What a window took above idle: `active_j` ± `uncertainty_j`; `idle_j` is the share of doing nothing."""

    active_j: float
    idle_j: float
    uncertainty_j: float
    idle_power_w: float


@dataclass(frozen=True, slots=True)
class Unresolved:
    """No figure: `reason` says why; `repeats_needed` is how many times the work would resolve it, where more helps."""

    reason: str
    repeats_needed: int | None = None


def above_idle(energy: Energy, idle: Energy) -> Active:
    """`energy` without what the machine takes anyway, measured over another window by the same sensor.

    The errors of both windows are added: that of the idle power grows with the length of the other window. An active
    energy below its uncertainty, or below 0, says that the work cannot be told from doing nothing.
    """
    idle_j = idle.power_w * energy.duration_s
    idle_error_j = idle.uncertainty_j / idle.duration_s * energy.duration_s
    return Active(energy.energy_j - idle_j, idle_j, energy.uncertainty_j + idle_error_j, idle.power_w)


def update_period(samples: Sequence[Sample]) -> float | None:
    """How often the value was seen to change, in seconds (the median), or None with fewer than four changes.

    Where every sample differs, the sensor is at least as fast as it was read.
    """
    edges = [b.t_s for a, b in itertools.pairwise(samples) if (a.energy_j, a.power_w) != (b.energy_j, b.power_w)]
    if len(edges) < 4:
        return None
    return statistics.median(b - a for a, b in itertools.pairwise(edges))


def energy_between(
    samples: Sequence[Sample],
    *,
    start_s: float,
    end_s: float,
    period_s: float,
    source: Source,
    scope: str,
    resolve: float = RESOLVE,
) -> Energy | Unresolved:
    """The energy from `start_s` to `end_s` (times of `Sample.t_s`) by the counter if there is one, else by power.

    `period_s` is the sensor's update period; the window must last `resolve` of them.
    """
    duration_s = end_s - start_s
    if duration_s <= 0:
        return Unresolved("the window is empty")
    if duration_s < resolve * period_s:
        return Unresolved(
            f"the window lasts {duration_s * 1e3:.3g} ms, the sensor is renewed every {period_s * 1e3:.3g} ms "
            f"and needs {resolve:.0f} renewals",
            math.ceil(resolve * period_s / duration_s),
        )
    ordered = sorted(samples, key=lambda s: s.t_s)
    counts = [(s.t_s, s.energy_j) for s in ordered if s.energy_j is not None]
    powers = [(s.t_s, s.power_w) for s in ordered if s.power_w is not None]
    points = counts or powers
    if len(points) < 2:
        return Unresolved("the sensor gave fewer than two readings")
    slack_s = 2 * period_s
    if points[0][0] > start_s + slack_s or points[-1][0] < end_s - slack_s:
        return Unresolved("the sensor's readings do not cover the window")
    figure = _by_counter(counts, start_s, end_s, period_s) if counts else _by_power(powers, start_s, end_s, period_s)
    if isinstance(figure, Unresolved):
        return figure
    return Energy(figure[0], figure[1], duration_s, source, scope)


def _by_counter(
    points: Sequence[tuple[float, float]], start_s: float, end_s: float, period_s: float
) -> tuple[float, float] | Unresolved:
    """Energy and uncertainty from counter edges, interpolated at both ends.

    A new value was seen at t, but appeared up to `late` before: since the reading before, and at most one period.
    """
    edges: list[tuple[float, float]] = []
    lates: list[float] = []
    for i, (t, energy) in enumerate(points):
        if i and energy < points[i - 1][1]:
            return Unresolved("the counter went back (its driver was reloaded); measure again")
        if i and energy == points[i - 1][1]:
            continue
        late = min(t - points[i - 1][0], period_s) if i else period_s
        edges.append((t - late / 2, energy))
        lates.append(late)
    if len(edges) < 3:
        return Unresolved("the counter did not move enough to be read")
    energy_j = _counter_at(edges, end_s) - _counter_at(edges, start_s)
    mean_w = energy_j / (end_s - start_s)
    ends_j = sum(_end_error(edges, lates, t) for t in (start_s, end_s))
    return energy_j, max(ends_j, mean_w * period_s)


def _counter_at(edges: Sequence[tuple[float, float]], t_s: float) -> float:
    """The counter at `t_s` on the line through the edges around it (the nearest two, beyond the first and last)."""
    right = min(max(bisect.bisect_right(edges, (t_s, math.inf)), 1), len(edges) - 1)
    (ta, ea), (tb, eb) = edges[right - 1], edges[right]
    return ea + (eb - ea) * (t_s - ta) / (tb - ta)


def _end_error(edges: Sequence[tuple[float, float]], lates: Sequence[float], t_s: float) -> float:
    """How far the line can be off at `t_s`: the distance to the nearer edge at twice its power, and its lateness."""
    right = min(max(bisect.bisect_right(edges, (t_s, math.inf)), 1), len(edges) - 1)
    (ta, ea), (tb, eb) = edges[right - 1], edges[right]
    near_s = min(abs(t_s - ta), abs(tb - t_s))
    return (eb - ea) / (tb - ta) * (near_s + max(lates[right - 1], lates[right]) / 2)


def _by_power(
    points: Sequence[tuple[float, float]], start_s: float, end_s: float, period_s: float
) -> tuple[float, float]:
    """Energy and uncertainty by trapezoid.

    The uncertainty is one period at the ends, and what may have happened between two renewals, taken from their
    difference: for independent values of standard deviation s this is two standard errors, 2 s T sqrt(n).
    """
    points = renewals(points, period_s)
    inside = [(t, p) for t, p in points if start_s < t < end_s]
    line = [(start_s, _power_at(points, start_s)), *inside, (end_s, _power_at(points, end_s))]
    energy_j = sum((tb - ta) * (pa + pb) / 2 for (ta, pa), (tb, pb) in itertools.pairwise(line))
    scatter_j = math.sqrt(2 * sum(((pb - pa) * (tb - ta)) ** 2 for (ta, pa), (tb, pb) in itertools.pairwise(line)))
    edges_j = max(energy_j / (end_s - start_s), line[0][1], line[-1][1]) * period_s
    return energy_j, edges_j + scatter_j


def renewals(points: Sequence[tuple[float, float]], period_s: float) -> list[tuple[float, float]]:
    """The points of a power signal that was read more often than it is renewed, one a renewal where it changed.

    A value that stands for a while is a line from where it was first seen to one period before the next value:
    without that, a jump would look as short as the readings are close, and its uncertainty too small.
    """
    out: list[tuple[float, float]] = []
    for i, (t, power) in enumerate(points):
        if out and power == out[-1][1]:
            if i == len(points) - 1:
                out.append((t, power))
            continue
        if out and (held_s := min(points[i - 1][0], t - period_s)) > out[-1][0]:  # lost readings leave a longer slope
            out.append((held_s, out[-1][1]))
        out.append((t, power))
    return out


def _power_at(points: Sequence[tuple[float, float]], t_s: float) -> float:
    """Power at `t_s`, interpolated; beyond the readings, the nearest one."""
    right = bisect.bisect_right(points, (t_s, math.inf))
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (ta, pa), (tb, pb) = points[right - 1], points[right]
    return pa if tb == ta else pa + (pb - pa) * (t_s - ta) / (tb - ta)
