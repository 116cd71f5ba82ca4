"""From samples to joules, with an uncertainty, or with the reason why no figure can be given. No clock, no I/O."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.telemetry.knots import CounterKnots, PowerKnots

if TYPE_CHECKING:
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


class Integrator:
    """Turns readings that come one by one into the energy of marked windows; memory does not grow with their number.

        meter = Integrator(period_s=0.1)
        meter.mark(start_s)                          # as it passes, or before
        meter.add(sample)                            # again and again, in order of time
        meter.mark(end_s)
        meter.add(sample)                            # until the readings cover the window
        meter.between(start_s, end_s, source="rail", scope="module rail VDD_IN")

    `period_s` is the sensor's update period; a window must last `resolve` of them.
    """

    def __init__(self, *, period_s: float, resolve: float = RESOLVE) -> None:
        self._period_s, self._resolve = period_s, resolve
        self._counter, self._power = CounterKnots(period_s), PowerKnots(period_s)
        self._marks: set[float] = set()

    def mark(self, t_s: float) -> None:
        """A window begins or ends at `t_s`: now, or later."""
        self._marks.add(t_s)
        self._counter.mark(t_s)
        self._power.mark(t_s)

    def add(self, sample: Sample) -> None:
        """One reading, later than all others."""
        if sample.energy_j is not None:
            self._counter.add(sample.t_s, sample.energy_j)
        if sample.power_w is not None:
            self._power.add(sample.t_s, sample.power_w)

    def between(self, start_s: float, end_s: float, *, source: Source, scope: str) -> Energy | Unresolved:
        """The energy from one mark to another, by the counter if there is one, else by power.

        Raises ValueError for a time that was not marked: what lay around it may not be kept.
        """
        if not {start_s, end_s} <= self._marks:
            raise ValueError("A window begins and ends at marked times; call mark() as they pass.")
        duration_s, period_s = end_s - start_s, self._period_s
        if duration_s <= 0:
            return Unresolved("the window is empty")
        if duration_s < self._resolve * period_s:
            return Unresolved(
                f"the window lasts {duration_s * 1e3:.3g} ms, the sensor is renewed every {period_s * 1e3:.3g} ms "
                f"and needs {self._resolve:.0f} renewals",
                math.ceil(self._resolve * period_s / duration_s),
            )
        track = self._counter if self._counter.readings else self._power
        if track.readings < 2:
            return Unresolved("the sensor gave fewer than two readings")
        slack_s = 2 * period_s
        if track.first_s > start_s + slack_s or track.last_s < end_s - slack_s:
            return Unresolved("the sensor's readings do not cover the window")
        figure = track.figure(start_s, end_s)
        return Unresolved(figure) if isinstance(figure, str) else Energy(*figure, duration_s, source, scope)


def energy_between(
    samples: Iterable[Sample],
    *,
    start_s: float,
    end_s: float,
    period_s: float,
    source: Source,
    scope: str,
    resolve: float = RESOLVE,
) -> Energy | Unresolved:
    """The energy from `start_s` to `end_s` (times of `Sample.t_s`) of readings that are at hand; see `Integrator`."""
    meter = Integrator(period_s=period_s, resolve=resolve)
    meter.mark(start_s)
    meter.mark(end_s)
    for sample in sorted(samples, key=lambda s: s.t_s):
        meter.add(sample)
    return meter.between(start_s, end_s, source=source, scope=scope)
