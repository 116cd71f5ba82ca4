"""What one request cost: the energy above idle of the run that answered it, by its share of the rows."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import SensorError
from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.meter import Energy, energy_between
from edgekit.telemetry.sampler import Sampler
from edgekit.telemetry.sensors import Sample, Sensor

INTERVAL_S = 0.05
_KEPT = 1200  # a minute
_RECENT = 10
_PARTS = ("board", "platform", "gpu", "cpu")
_IDLE_S, _STALE_S = 600.0, 2.0

ESTIMATE = "estimate"


@dataclass(frozen=True, slots=True)
class RequestEnergy:
    """Joules of one request; `source` is the sensor's (rapl, rail, counter, power), or estimate: power x busy time."""

    energy_j: float
    source: str


BOUNDS_J = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Upper bounds of the buckets of `Spent`."""


class Spent:
    """How many requests took how much: `counts` by `BOUNDS_J` and one for what is beyond, `energy_j` of all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_J) + 1)
        self.energy_j = 0.0

    def add(self, energy_j: float) -> None:
        """Count one request."""
        self.counts[bisect_left(BOUNDS_J, energy_j)] += 1
        self.energy_j += energy_j


class EnergyMeter:
    """Reads the machine's widest energy sensor twenty times a second, and shares out what runs took.

    Idle is the lowest mean power of half a second within the last ten minutes. Where the sensor cannot resolve a run
    (it lasted less than half a second), its time is taken at the power of the last half second above idle.
    """

    def __init__(self, root: Path = Path("/"), *, interval_s: float = INTERVAL_S) -> None:
        self._root, self._interval_s = root, interval_s
        self._sensor: Sensor | None = None
        self._sampler: Sampler[Sample] | None = None
        self._idle: deque[tuple[float, float]] = deque()
        self._thread = threading.Thread(target=self._begin, name="edgekit-energy", daemon=True)
        self.spent: dict[tuple[str, str, str], Spent] = {}
        self.reason = ""

    def start(self) -> None:
        """Look for a sensor, on a thread; until it is found requests have no energy."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._thread.join(5.0)
        if self._sampler is not None:
            self._sampler.stop()

    @property
    def scope(self) -> str:
        """What is measured, in words; empty without a sensor."""
        return "" if self._sensor is None else self._sensor.scope

    def _begin(self) -> None:
        found = find_sensors(self._root)
        if not found.sensors:
            self.reason = "; ".join(found.reasons) or "no sensor"
            return
        self._sensor = min(found.sensors, key=lambda s: _PARTS.index(s.part))
        try:
            self._sensor.read()
        except SensorError as error:
            self.reason = str(error)
            return
        self._sampler = Sampler(self._sensor.read, interval_s=self._interval_s, keep=_KEPT)
        self._sampler.start()

    def of(self, run_s: float, *, share: float, end_s: float | None = None) -> RequestEnergy | None:
        """What a run cost that lasted `run_s` seconds until `end_s` (by `time.monotonic`), times `share`.

        None: there is no sensor, or it has not said enough, or nothing any more.
        """
        sensor, sampler = self._sensor, self._sampler
        if sensor is None or sampler is None:
            return None
        end_s = time.monotonic() if end_s is None else end_s
        history = sampler.history()
        power_w = mean_power(history[-_RECENT:])
        if power_w is None or end_s - history[-1].t_s > _STALE_S:
            return None
        idle_w = self._idle_w(power_w, end_s)
        period_s = max(sensor.period_s, self._interval_s)
        if run_s >= 10 * period_s:
            energy = energy_between(
                history, start_s=end_s - run_s, end_s=end_s, period_s=period_s, source=sensor.source, scope=sensor.scope
            )
            if isinstance(energy, Energy):
                return RequestEnergy(max(0.0, energy.energy_j - idle_w * run_s) * share, sensor.source)
        return RequestEnergy(max(0.0, power_w - idle_w) * run_s * share, ESTIMATE)

    def charge(self, model: str, version: str, run_s: float, *, share: float) -> RequestEnergy | None:
        """`of` a run that has just ended, counted in `spent` by model, version and source."""
        cost = self.of(run_s, share=share)
        if cost is not None:
            self.spent.setdefault((model, version, cost.source), Spent()).add(cost.energy_j)
        return cost

    def _idle_w(self, power_w: float, now_s: float) -> float:
        """The lowest of the last minutes: a queue of candidates that only rise."""
        idle = self._idle
        while idle and idle[-1][1] >= power_w:
            idle.pop()
        idle.append((now_s, power_w))
        while idle[0][0] < now_s - _IDLE_S:
            idle.popleft()
        return idle[0][1]

    def observe(self) -> None:
        """Take the power of now as a candidate for idle; to be called about once a second."""
        power_w = None if self._sampler is None else mean_power(self._sampler.history()[-_RECENT:])
        if power_w is not None:
            self._idle_w(power_w, time.monotonic())


def mean_power(samples: tuple[Sample, ...]) -> float | None:
    """Mean watts of some readings: by the counter where there is one; None where they do not tell."""
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    if first.energy_j is not None and last.energy_j is not None:
        spent_j, seconds = last.energy_j - first.energy_j, last.t_s - first.t_s
        return spent_j / seconds if seconds > 0 and spent_j >= 0 else None
    powers = [s.power_w for s in samples if s.power_w is not None]
    return sum(powers) / len(powers) if powers else None
