"""What every sensor offers, and a thread that reads some while other work runs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

from edgekit.errors import SensorError
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
    """Reads sensors in a thread of its own while the body of the `with` runs.

        with Recorder(sensors) as recorder:
            work()
        samples = recorder.samples(0)

    Each sensor is read at entry and, one update period after the body, at exit, so that the samples cover it. A
    sensor that fails, or does not answer, is dropped; `dropped` keeps the sentence by its position.
    """

    def __init__(self, sensors: Sequence[Sensor], *, interval_s: float = 0.05) -> None:
        """`interval_s` is the pause between readings. Raises UsageError if it is not positive."""
        self._sensors = tuple(sensors)
        self._samples: list[list[Sample]] = [[] for _ in sensors]
        self._sampler = Sampler(self._read_all, interval_s=interval_s, keep=1)
        self._reading: int | None = None
        self.dropped: dict[int, str] = {}

    def samples(self, index: int) -> tuple[Sample, ...]:
        """What the sensor at that position said, in order of time."""
        return tuple(self._samples[index])

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
                self._samples[index].append(sensor.read())
            except SensorError as error:
                self.dropped[index] = str(error)
        self._reading = None
