"""Readings of one sensor boiled down to what the energy of marked windows needs. No clock, no I/O.

A window's energy is settled at its two ends and by sums in between, so of a long run only the readings around the
marked times are kept, with running sums: memory does not grow with the number of readings.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

TAIL = 16
"""So many of the newest knots are always kept; a time that is marked as it passes lies among them."""
_ROOM = 64


class Figure(NamedTuple):
    """Joules of a window and their uncertainty."""

    energy_j: float
    uncertainty_j: float


class Edge(NamedTuple):
    """A new value of a counter: it appeared at `t_s`, give or take half of `late_s`."""

    t_s: float
    energy_j: float
    late_s: float


class Knot(NamedTuple):
    """A bend of a power signal; `area_j` and `squares` are sums over the line from the first knot to here.

    `squares` is of the joules by which each piece's ends differ, (p2 - p1)² (t2 - t1)².
    """

    t_s: float
    power_w: float
    area_j: float
    squares: float


class _Timed(Protocol):
    @property
    def t_s(self) -> float: ...


T = TypeVar("T", bound=_Timed)


class Thinned(Generic[T]):
    """Items in order of time; kept are the first two, the newest, and two on either side of each mark."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.marks: list[float] = []
        self._limit = _ROOM

    def mark(self, t_s: float) -> None:
        """Keep what lies around `t_s`, which is to come or has just passed."""
        self.marks.append(t_s)

    def append(self, item: T) -> None:
        """Add an item that is later than all others."""
        self.items.append(item)
        if len(self.items) > self._limit:
            self._thin()

    def _thin(self) -> None:
        items = self.items
        kept = {0, 1, *range(len(items) - TAIL, len(items))}
        for t_s in tuple(self.marks):
            right = after(items, t_s)
            kept.update(range(max(0, right - 2), min(len(items), right + 2)))
        self.items = [items[i] for i in sorted(kept)]
        self._limit = len(self.items) + _ROOM


class CounterKnots:
    """The edges of an energy counter that is renewed every `period_s`."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._edges: Thinned[Edge] = Thinned()
        self.mark = self._edges.mark
        self.readings = 0
        self.first_s = self.last_s = math.nan
        self._last_j = math.nan
        self._went_back = False

    def add(self, t_s: float, energy_j: float) -> None:
        """One reading; one that is not later than the last is passed over.

        A new value was seen now, but appeared up to `late_s` before: since the reading before, and at most one period.
        """
        if t_s <= self.last_s:
            return
        self.readings += 1
        if self.readings == 1:
            self.first_s, late_s = t_s, self._period_s
        else:
            late_s = min(t_s - self.last_s, self._period_s)
        last_j, self.last_s, self._last_j = self._last_j, t_s, energy_j
        if energy_j < last_j:
            self._went_back = True
        elif energy_j != last_j:
            self._edges.append(Edge(t_s - late_s / 2, energy_j, late_s))

    def figure(self, start_s: float, end_s: float) -> Figure | str:
        """The energy between two marks, interpolated between edges at both, or why there is none."""
        edges = self._edges.items
        if self._went_back:
            return "the counter went back (its driver was reloaded); measure again"
        if len(edges) < 3:
            return "the counter did not move enough to be read"
        energy_j = _counter_at(edges, end_s) - _counter_at(edges, start_s)
        mean_w = energy_j / (end_s - start_s)
        ends_j = _end_error(edges, start_s) + _end_error(edges, end_s)
        return Figure(energy_j, max(ends_j, mean_w * self._period_s))


class PowerKnots:
    """The bends of a power signal that is renewed every `period_s`, however often it is read.

    A value that stands for a while is a line from where it was first seen to one period before the next value:
    without that, a jump would look as short as the readings are close, and its uncertainty too small.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._knots: Thinned[Knot] = Thinned()
        self.mark = self._knots.mark
        self.readings = 0
        self.first_s = self.last_s = math.nan

    def add(self, t_s: float, power_w: float) -> None:
        """One reading; one that is not later than the last is passed over."""
        if t_s <= self.last_s:
            return
        self.readings += 1
        knots = self._knots
        if not knots.items:
            self.first_s = t_s
            knots.append(Knot(t_s, power_w, 0.0, 0.0))
        elif power_w != (last := knots.items[-1]).power_w:
            if (held_s := min(self.last_s, t_s - self._period_s)) > last.t_s:  # lost readings leave a longer slope
                last = _next(last, held_s, last.power_w)
                knots.append(last)
            knots.append(_next(last, t_s, power_w))
        self.last_s = t_s

    def knots(self) -> Sequence[Knot]:
        """What is kept of the signal, up to the last reading."""
        items = self._knots.items
        if items and self.last_s > items[-1].t_s:
            return [*items, _next(items[-1], self.last_s, items[-1].power_w)]
        return items

    def figure(self, start_s: float, end_s: float) -> Figure:
        """The energy between two marks by trapezoid.

        The uncertainty is one period at the ends, and what may have happened between two renewals, taken from their
        difference: for independent values of standard deviation s this is two standard errors, 2 s T sqrt(n).
        """
        knots = self.knots()
        inside = knots[after(knots, start_s) : bisect.bisect_left(knots, end_s, key=_time)]
        first = Knot(start_s, _power_at(knots, start_s), 0.0, 0.0)
        last = first
        if inside:
            a, b = _next(first, inside[0].t_s, inside[0].power_w), inside[-1]
            area_j, squares = b.area_j - inside[0].area_j, b.squares - inside[0].squares
            last = Knot(b.t_s, b.power_w, a.area_j + area_j, a.squares + squares)
        last = _next(last, end_s, _power_at(knots, end_s))
        mean_w = last.area_j / (end_s - start_s)
        edges_j = max(mean_w, first.power_w, last.power_w) * self._period_s
        return Figure(last.area_j, edges_j + math.sqrt(2 * max(0.0, last.squares)))


def after(items: Sequence[_Timed], t_s: float) -> int:
    """Where the first item later than `t_s` stands."""
    return bisect.bisect_right(items, t_s, key=_time)


def _time(item: _Timed) -> float:
    return item.t_s


def _next(last: Knot, t_s: float, power_w: float) -> Knot:
    gap_s, step_w = t_s - last.t_s, power_w - last.power_w
    area_j = last.area_j + gap_s * (last.power_w + power_w) / 2
    return Knot(t_s, power_w, area_j, last.squares + (step_w * gap_s) ** 2)


def _around(edges: Sequence[Edge], t_s: float) -> tuple[Edge, Edge]:
    """The edges on either side of `t_s` (the nearest two, beyond the first and last)."""
    right = min(max(after(edges, t_s), 1), len(edges) - 1)
    return edges[right - 1], edges[right]


def _counter_at(edges: Sequence[Edge], t_s: float) -> float:
    a, b = _around(edges, t_s)
    return a.energy_j + (b.energy_j - a.energy_j) * (t_s - a.t_s) / (b.t_s - a.t_s)


def _end_error(edges: Sequence[Edge], t_s: float) -> float:
    """How far the line can be off at `t_s`: the distance to the nearer edge at twice its power, and its lateness."""
    a, b = _around(edges, t_s)
    near_s = min(abs(t_s - a.t_s), abs(b.t_s - t_s))
    return (b.energy_j - a.energy_j) / (b.t_s - a.t_s) * (near_s + max(a.late_s, b.late_s) / 2)


def _power_at(knots: Sequence[Knot], t_s: float) -> float:
    """Power at `t_s`, interpolated; beyond the readings, the nearest one."""
    right = after(knots, t_s)
    if right in (0, len(knots)):
        return knots[min(right, len(knots) - 1)].power_w
    a, b = knots[right - 1], knots[right]
    return a.power_w + (b.power_w - a.power_w) * (t_s - a.t_s) / (b.t_s - a.t_s)
