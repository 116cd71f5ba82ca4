from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import SensorError, UsageError
from edgekit.telemetry import Energy, Found, Sample, Unresolved
from edgekit.telemetry.measure import measure_energy
from tests.data import ROOT
from tests.telemetry import boards


class Clock:
    """A counter of a power that the test sets, exact at every reading, renewed every 10 ms."""

    source, part, period_s = "counter", "cpu", 0.01

    def __init__(self, name: str = "clock", *, lives: int = 10**9) -> None:
        self.name, self.scope, self.lives = name, f"scope of {name}", lives
        self._lock, self._watts, self._joules, self._since = threading.Lock(), 5.0, 0.0, time.monotonic()

    def use(self, watts: float) -> float:
        """Change the power; returns the joules until now."""
        with self._lock:
            now = time.monotonic()
            self._joules += self._watts * (now - self._since)
            self._watts, self._since = watts, now
            return self._joules

    def read(self) -> Sample:
        self.lives -= 1
        if self.lives < 0:
            raise SensorError(f"{self.name} is gone.")
        with self._lock:
            now = time.monotonic()
            grid = max(self._since, now // 0.01 * 0.01)
            return Sample(now, energy_j=self._joules + self._watts * (grid - self._since))


def test_two_lines_give_joules_with_source_and_scope() -> None:
    sensor = Clock()
    with edgekit.measure_energy(sensors=Found((sensor,))) as m:
        before = sensor.use(20.0)
        time.sleep(0.4)
        spent = sensor.use(5.0) - before
    (energy,) = m.energies
    assert abs(energy.energy_j - spent) <= energy.uncertainty_j
    assert energy.uncertainty_j < 0.2 * spent
    assert "scope of clock, by counter" in str(m)
    assert "±" in str(m)


def test_what_is_spent_above_idle_is_told_apart() -> None:
    sensor = Clock()
    with measure_energy(sensors=Found((sensor,)), idle_s=0.4) as m:
        before, start_s = sensor.use(25.0), time.monotonic()
        time.sleep(0.4)
        spent, lasted_s = sensor.use(5.0) - before, time.monotonic() - start_s
    active = m.results[0].active
    assert active is not None
    assert active.idle_power_w == pytest.approx(5.0, rel=0.2)
    assert abs(active.active_j - (spent - 5.0 * lasted_s)) <= active.uncertainty_j
    assert "above idle" in str(m)


def test_a_block_that_is_too_short_says_how_often_to_repeat_it() -> None:
    with measure_energy(sensors=Found((Clock(),))) as m:
        pass
    unresolved = m.results[0].energy
    assert isinstance(unresolved, Unresolved)
    assert unresolved.repeats_needed is not None
    assert unresolved.repeats_needed > 10
    assert f"Repeat the work {unresolved.repeats_needed} times" in str(m)
    assert m.energies == ()


def test_scopes_are_never_added_and_a_sensor_that_dies_is_named() -> None:
    one, two = Clock("one"), Clock("two")
    with measure_energy(sensors=Found((one, two))) as m:
        two.lives = 3
        time.sleep(0.3)
    assert [r.sensor for r in m.results] == ["one", "two"]
    assert isinstance(m.results[0].energy, Energy)
    assert isinstance(m.results[1].energy, Unresolved)
    assert "two is gone" in str(m)
    dead = Clock("dead", lives=0)
    with measure_energy(sensors=Found((dead,))) as m:
        pass
    assert m.results == ()
    assert m.reasons == ("dead is gone.",)


def test_without_a_sensor_there_is_a_sentence_and_no_zero(tmp_path: Path) -> None:
    with measure_energy(root=tmp_path, idle_s=10) as m:
        pass
    assert m.energies == ()
    assert "RAPL: this machine shows no" in str(m)


def test_a_block_that_raises_leaves_no_figure() -> None:
    meter = measure_energy(sensors=Found((Clock(),)))
    with pytest.raises(ZeroDivisionError), meter:
        _ = 1 / 0
    assert meter.results == ()


def test_a_board_is_measured_by_its_rail(tmp_path: Path) -> None:
    with measure_energy(root=boards.nano(tmp_path)) as m:
        time.sleep(1.1)
    energy = next(e for e in m.energies if e.source == "rail")
    assert energy.scope == "module rail POM_5V_IN"
    assert energy.power_w == pytest.approx(3.238)


def test_ctrl_c_while_idle_is_measured_leaves_no_thread() -> None:
    threads, main = threading.active_count(), threading.get_ident()
    threading.Timer(0.8, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), measure_energy(sensors=Found((Clock(),)), idle_s=30):
        pass
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_negative_idle_is_refused() -> None:
    with pytest.raises(UsageError, match="negative"):
        measure_energy(idle_s=-1)


def test_it_works_as_the_documentation_says() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/energy.md").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
