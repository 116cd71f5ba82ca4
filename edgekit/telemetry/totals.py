"""Joules and throttle events since a watch began, added up from readings: what a metrics page counts."""

from __future__ import annotations

from edgekit.telemetry.monitor import Power, Snapshot
from edgekit.telemetry.rails import RailReading
from edgekit.telemetry.throttle import Throttle

LONGEST_GAP_S = 5.0
"""Between readings further apart than this (a machine that slept) power is not known, so nothing is added."""


class Totals:
    """Only ever grows. Scopes may contain one another (a rail lies in the module): never add them up.

    `energy_j` is joules by (name, source): every rail, and each power of `Snapshot.powers`. Counters are taken as they
    are, power is integrated by trapezoid. `throttle_events` counts, by cause, the growth of a counter, or how often an
    alert went on.
    """

    def __init__(self) -> None:
        self.energy_j: dict[tuple[str, str], float] = {}
        self.throttle_events: dict[str, int] = {}
        self._last: Snapshot | None = None

    def copy(self) -> Totals:
        """The counts as they are now; later readings do not change them."""
        other = Totals()
        other.energy_j, other.throttle_events = dict(self.energy_j), dict(self.throttle_events)
        other._last = self._last
        return other

    def add(self, now: Snapshot) -> None:
        """Count the time since the reading before; readings must come in order."""
        last, self._last = self._last, now
        before = {} if last is None else _by_cause(last)
        for cause, throttle in _by_cause(now).items():
            new = _new_events(before.get(cause), throttle)
            self.throttle_events[cause] = self.throttle_events.get(cause, 0) + new
        parts = {(p.name, p.source): p for p in now.powers}
        rails = {(r.label, "rail"): r for r in now.rails}
        for key in (*parts, *rails):
            self.energy_j.setdefault(key, 0.0)
        if last is None or not 0 < now.t_s - last.t_s <= LONGEST_GAP_S:
            return
        old_parts = {(p.name, p.source): p for p in last.powers}
        old_rails = {(r.label, "rail"): r for r in last.rails}
        for key, part in parts.items():
            if key in old_parts:
                self.energy_j[key] += _spent_j(old_parts[key], part, now.t_s - last.t_s)
        for key, rail in rails.items():
            if key in old_rails:
                self.energy_j[key] += _trapezoid_j(old_rails[key], rail, now.t_s - last.t_s)


def _by_cause(now: Snapshot) -> dict[str, Throttle]:
    """The causes of a reading; one that several GPUs have is active if it is for any of them."""
    out: dict[str, Throttle] = {}
    for throttle in (*now.throttles, *(t for g in now.gpus for t in g.throttles)):
        same = out.get(throttle.cause)
        out[throttle.cause] = throttle if same is None or throttle.active else same
    return out


def _new_events(before: Throttle | None, now: Throttle) -> int:
    if now.events is not None:
        return max(0, now.events - before.events) if before is not None and before.events is not None else 0
    return int(now.active and (before is None or not before.active))


def _spent_j(before: Power, now: Power, seconds: float) -> float:
    if before.energy_j is not None and now.energy_j is not None:
        return max(0.0, now.energy_j - before.energy_j)
    return _trapezoid_j(before, now, seconds)


def _trapezoid_j(before: Power | RailReading, now: Power | RailReading, seconds: float) -> float:
    if before.power_w is None or now.power_w is None:
        return 0.0
    return (before.power_w + now.power_w) / 2 * seconds
