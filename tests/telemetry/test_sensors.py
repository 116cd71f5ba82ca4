from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edgekit.errors import SensorError, UsageError
from edgekit.telemetry import Energy, Recorder, Sample, Sensor, Unresolved, find_sensors, measured_period
from edgekit.telemetry.rapl import find_rapl
from tests.telemetry import trees


class Stepper:
    """A counter of a constant 10 W that advances every 20 ms, and fails after `lives` readings."""

    name, source, scope, part, period_s = "stepper", "counter", "test", "cpu", 0.5

    def __init__(self, lives: int = 10**9) -> None:
        self.lives = lives

    def read(self) -> Sample:
        self.lives -= 1
        if self.lives < 0:
            raise SensorError("stepper: gone")
        now = time.monotonic()
        return Sample(now, energy_j=10 * (now // 0.02) * 0.02)


def test_the_period_is_measured_not_believed() -> None:
    assert isinstance(Stepper(), Sensor)
    assert 0.015 < measured_period(Stepper()) < 0.03


def test_a_value_that_never_changes_leaves_the_stated_period(tmp_path: Path) -> None:
    root = trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    (cpu,) = find_rapl(root).sensors
    assert measured_period(cpu, limit_s=0.02) == cpu.period_s


def test_a_recording_covers_its_body_and_gives_joules() -> None:
    sensor = Stepper()
    sensor.period_s = 0.02
    with Recorder([sensor], periods_s=[0.02], interval_s=0.01) as recorder:
        start_s = recorder.mark()
        time.sleep(0.4)
        end_s = recorder.mark()
    energy = recorder.between(0, start_s, end_s)
    assert isinstance(energy, Energy)
    assert abs(energy.energy_j - 10 * (end_s - start_s)) <= energy.uncertainty_j


def test_a_failing_sensor_is_dropped_and_the_others_go_on() -> None:
    with Recorder([Stepper(lives=2), Stepper()], periods_s=[0.02, 0.02], interval_s=0.005) as recorder:
        start_s = recorder.mark()
        time.sleep(0.3)
        end_s = recorder.mark()
    assert recorder.dropped == {0: "stepper: gone"}
    assert recorder.between(0, start_s, end_s) == Unresolved("stepper: gone")
    assert isinstance(recorder.between(1, start_s, end_s), Energy)


def test_an_interval_must_be_positive() -> None:
    with pytest.raises(UsageError, match="positive"):
        Recorder([], periods_s=[], interval_s=0)


def test_a_tree_with_both_gives_both(tmp_path: Path) -> None:
    trees.orin_nano(tmp_path)
    trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    assert [s.part for s in find_sensors(tmp_path).sensors] == ["board", "cpu"]


def test_this_machine_has_sensors_or_sentences() -> None:
    found = find_sensors()
    assert found.sensors or found.reasons
    assert all(reason.endswith((".", ")", "'", "/")) for reason in found.reasons)


def test_a_sensor_that_hangs_is_dropped_and_the_end_does_not_wait_for_it() -> None:
    release = threading.Event()

    class Hanging(Stepper):
        def read(self) -> Sample:
            if self.lives < 10**9:
                release.wait(30)
            return super().read()

    hanging = Hanging()
    hanging.name, hanging.period_s = "hanging", 0.01
    start_s = time.monotonic()
    with Recorder([hanging], periods_s=[0.02], interval_s=0.01) as recorder:
        time.sleep(0.05)
    assert time.monotonic() - start_s < 4
    assert "hanging did not answer" in recorder.dropped[0]
    release.set()
