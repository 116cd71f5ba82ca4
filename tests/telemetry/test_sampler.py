from __future__ import annotations

import logging
import threading
import time

import pytest

from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.sampler import Sampler


def test_it_reads_at_its_rate_and_keeps_the_newest() -> None:
    count = iter(range(10_000))
    with Sampler(lambda: next(count), interval_s=0.01, keep=5) as sampler:
        assert sampler.latest is not None, "the first reading is there at once"
        time.sleep(0.3)
    readings = sampler.history()
    assert len(readings) == 5
    assert list(readings) == list(range(readings[0], readings[0] + 5))
    assert 5 <= readings[-1] <= 100
    assert sampler.latest == readings[-1]
    time.sleep(0.05)
    assert sampler.latest == readings[-1], "it has ended"


def test_a_failing_sensor_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    lives = iter([1, 2])

    def read() -> int:
        try:
            return next(lives)
        except StopIteration:
            raise SensorError("rail VDD_IN is gone.") from None

    with caplog.at_level(logging.WARNING), Sampler(read, interval_s=0.005) as sampler:
        time.sleep(0.1)
    assert sampler.failure == "rail VDD_IN is gone."
    assert sampler.history() == (1, 2)
    assert [r.getMessage() for r in caplog.records] == ["sampling ends: rail VDD_IN is gone."]


def test_a_reading_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    entered = iter([False, True])

    def read() -> float:
        if next(entered, True):
            release.wait(10)
        return time.monotonic()

    sampler = Sampler(read, interval_s=0.01)
    sampler.start()
    time.sleep(0.05)
    before = time.monotonic()
    assert sampler.latest is not None
    assert len(sampler.history()) == 1
    assert time.monotonic() - before < 1, "asking does not wait for the reading"
    assert not sampler.stop()
    release.set()


def test_a_slow_sensor_is_not_read_in_bursts_to_catch_up() -> None:
    times: list[float] = []

    def read() -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            time.sleep(0.15)

    start_s = time.monotonic()
    with Sampler(read, interval_s=0.02):
        time.sleep(0.3)
    assert len(times) <= (time.monotonic() - start_s - 0.15) / 0.02 + 3, "one that took 0.15 s would have 7 to catch up"


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="positive"):
        Sampler(lambda: 0, interval_s=0)
    with pytest.raises(UsageError, match="keep"):
        Sampler(lambda: 0, keep=0)
    assert Sampler(lambda: 0).latest is None
