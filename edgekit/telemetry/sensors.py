"""What every sensor offers, and a thread that measures with some while other work runs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

from edgekit.errors import SensorError
from edgekit.telemetry.meter import Energy, Integrator, Unresolved
from edgekit.telemetry.sampler import PATIENCE_S, Sampler

Source = Literal["counter", "rapl", "rail", "power"]
Part = Literal["cpu", "gpu", "board", "platform"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading. `t_s` is `time.monotonic()`; `energy_j` is a counter that only grows; None is not measured."""

    t_s: float
    power_w: float | None = None
    energy_j: float | None = None
    temp_c: float | None = None


@runtime_checkable
class Sensor(Protocol):
    """One source of power or energy.

    `source` is "counter" (the GPU's energy counter), "rapl" (the CPU's), "rail" (a power rail of the board) or "power"
    (the GPU's power readings).
    """

    @property
    def name(self) -> str:
        """Unique among the sensors of a machine."""
        ...

    @property
    def source(self) -> Source:
        """How it measures."""
        ...

    @property
    def scope(self) -> str:
        """What the figure covers, in words."""
        ...

    @property
    def part(self) -> Part:
        """What it belongs to."""
        ...

    @property
    def period_s(self) -> float:
        """How often its value is renewed, in seconds."""
        ...

    def read(self) -> Sample:
        """One reading. Raises SensorError if there is none any more."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """Sensors that work here, and for each kind that does not, one sentence why."""

    sensors: tuple[Sensor, ...] = ()
    reasons: tuple[str, ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.sensors + other.sensors, self.reasons + other.reasons)


def measured_period(sensor: Sensor, *, limit_s: float = 0.3) -> float:
    """How often the sensor's value is renewed, in seconds, seen by reading it without pause for `limit_s`.

    Where fewer than four renewals are seen (the value is steady, or renewed rarely), the sensor's own `period_s`.

    Raises:
        SensorError: the sensor failed.
    """
    edges: list[float] = []
    before = sensor.read()
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and len(edges) < 64:
        now = sensor.read()
        if (now.energy_j, now.power_w) != (before.energy_j, before.power_w):
            edges.append(now.t_s)
            before = now
    if len(edges) < 5:
        return sensor.period_s
    return statistics.median(b - a for a, b in itertools.pairwise(edges))


class Recorder:
    """Reads sensors in a thread of its own while the body of the `with` runs, and integrates what they say.

        with Recorder(sensors, periods_s=[measured_period(s) for s in sensors]) as recorder:
            start_s = recorder.mark()
            work()
            end_s = recorder.mark()
        energy = recorder.between(0, start_s, end_s)

    Each sensor is read at entry and, one update period after the body, at exit, so that the readings cover it. Readings
    are not kept: memory stays as it is however long the body lasts. A sensor that fails, or does not answer, is
    dropped; `dropped` keeps the sentence by its position.
    """

    def __init__(self, sensors: Sequence[Sensor], *, periods_s: Sequence[float], interval_s: float = 0.05) -> None:
        """`periods_s` are the sensors' update periods, `interval_s` is the pause between readings.

        Raises UsageError if the interval is not positive.
        """
        self._sensors = tuple(sensors)
        self._meters = [Integrator(period_s=period_s) for _, period_s in zip(sensors, periods_s, strict=True)]
        self._sampler = Sampler(self._read_all, interval_s=interval_s, keep=1)
        self._reading: int | None = None
        self.dropped: dict[int, str] = {}

    def mark(self) -> float:
        """A window begins or ends now; the time, by `time.monotonic`."""
        now_s = time.monotonic()
        for meter in self._meters:
            meter.mark(now_s)
        return now_s

    def between(self, index: int, start_s: float, end_s: float) -> Energy | Unresolved:
        """The energy between two marks by the sensor at that position; to be asked for after the body."""
        if index in self.dropped:
            return Unresolved(self.dropped[index].rstrip("."))
        sensor = self._sensors[index]
        return self._meters[index].between(start_s, end_s, source=sensor.source, scope=sensor.scope)

    def __enter__(self) -> Recorder:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._sensors:
            time.sleep(max(s.period_s for s in self._sensors))
        if not self._sampler.stop() and (stuck := self._reading) is not None:
            for index in range(stuck, len(self._sensors)):  # those after it were waiting for it
                self.dropped.setdefault(
                    index, f"{self._sensors[stuck].name} did not answer for {PATIENCE_S:.0f} s, so it is not used."
                )

    def _read_all(self) -> None:
        for index, sensor in enumerate(self._sensors):
            if index in self.dropped:
                continue
            self._reading = index
            try:
                self._meters[index].add(sensor.read())
            except SensorError as error:
                self.dropped[index] = str(error)
        self._reading = None
