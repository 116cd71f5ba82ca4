"""Joules of a block of code in two lines: `with edgekit.measure_energy() as m:`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.meter import Active, Energy, Unresolved, above_idle
from edgekit.telemetry.sensors import Found, Recorder, Sensor, measured_period

FASTEST_S, SLOWEST_S = 0.02, 0.05
"""Bounds of the pause between readings: half of the fastest sensor's update period, within these."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One sensor's answer: joules, or why there are none; and the part above idle if idle was measured."""

    sensor: str
    energy: Energy | Unresolved
    active: Active | None = None

    def __str__(self) -> str:
        if isinstance(self.energy, Unresolved):
            more = self.energy.repeats_needed
            hint = f" Repeat the work {more} times inside the block." if more else ""
            return f"{self.sensor}: no figure, {self.energy.reason}.{hint}"
        e = self.energy
        text = f"{e.energy_j:.4g} J ± {e.uncertainty_j:.2g} J, {e.power_w:.4g} W over {e.duration_s:.3g} s"
        if self.active is not None:
            text += f", {self.active.active_j:.4g} J ± {self.active.uncertainty_j:.2g} J above idle"
        return f"{text} ({e.scope}, by {e.source})"


class Meter:
    """Measures its `with` block by every sensor of the machine; the results are there when the block ends.

        with edgekit.measure_energy() as m:
            work()
        print(m)
        joules = m.energies[0].energy_j

    Different scopes (CPU package, GPU board, module) are never added up: each sensor has its own result. A block that
    raises leaves no results. Entering takes up to 0.3 s a sensor, in which its update period is measured, and
    `idle_s`; leaving waits one update period.
    """

    def __init__(self, found: Found, *, idle_s: float = 0.0) -> None:
        """`idle_s`: how long to measure doing nothing first. Raises UsageError if it is negative."""
        if not idle_s >= 0:
            raise UsageError(f"idle_s must not be negative, got {idle_s}.")
        self._found, self._idle_s = found, idle_s
        self.results: tuple[Measured, ...] = ()
        self.reasons: tuple[str, ...] = found.reasons

    @property
    def energies(self) -> tuple[Energy, ...]:
        """The results that are figures, in the order of the sensors."""
        return tuple(r.energy for r in self.results if isinstance(r.energy, Energy))

    def __enter__(self) -> Meter:
        self.results, self.reasons = (), self._found.reasons
        usable: list[tuple[Sensor, float]] = []
        for sensor in self._found.sensors:
            try:
                usable.append((sensor, measured_period(sensor)))
            except SensorError as error:
                self.reasons += (str(error),)
        self._sensors = [sensor for sensor, _ in usable]
        fastest_s = min((period_s for _, period_s in usable), default=SLOWEST_S)
        interval_s = min(SLOWEST_S, max(FASTEST_S, fastest_s / 2))
        self._recorder = Recorder(
            self._sensors, periods_s=[period_s for _, period_s in usable], interval_s=interval_s
        ).__enter__()
        self._begun_s = self._recorder.mark()
        if usable:
            try:
                time.sleep(self._idle_s)
            except BaseException as error:  # Ctrl-C: the block is not entered, so nobody else ends the recording
                self._recorder.__exit__(type(error), error, None)
                raise
        self._start_s = self._recorder.mark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_s = self._recorder.mark()
        self._recorder.__exit__(kind, error, trace)
        if error is None:
            self.results = tuple(self._result(i, end_s) for i in range(len(self._sensors)))

    def _result(self, index: int, end_s: float) -> Measured:
        sensor = self._sensors[index]
        energy = self._recorder.between(index, self._start_s, end_s)
        if index in self._recorder.dropped:
            return Measured(sensor.name, energy)
        idle = self._recorder.between(index, self._begun_s, self._start_s) if self._idle_s else None
        if isinstance(energy, Unresolved) or not isinstance(idle, Energy):
            if isinstance(idle, Unresolved):
                self.reasons += (f"{sensor.name}: idle was not measured, {idle.reason}.",)
            return Measured(sensor.name, energy)
        return Measured(sensor.name, energy, above_idle(energy, idle))

    def __str__(self) -> str:
        return "\n".join((*map(str, self.results), *self.reasons)) or "No energy sensor was found."


def measure_energy(*, idle_s: float = 0.0, sensors: Found | None = None, root: Path = Path("/")) -> Meter:
    """A meter for a `with` block, over every sensor of the machine at `root`, or over `sensors`.

    `idle_s` seconds of doing nothing are measured first, so that the energy above idle can be told; take at least ten
    update periods of the slowest sensor (1 s for an NVIDIA GPU).

    Raises:
        UsageError: `idle_s` is negative.
    """
    return Meter(find_sensors(root) if sensors is None else sensors, idle_s=idle_s)
