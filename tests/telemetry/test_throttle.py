from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.telemetry.throttle import find_fans, find_throttles
from tests.telemetry import boards
from tests.telemetry.trees import write


def test_only_alerts_mean_throttling(tmp_path: Path) -> None:
    states = {s.cause: s.read(0.0) for s in find_throttles(boards.agx_orin(tmp_path))}
    assert states["gpu-throttle-alert"].active
    assert not states["soc0-throttle-alert"].active
    assert "pwm-fan" not in states


def test_an_over_current_counter_alarms_while_it_grows_not_by_its_value(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    counter = {s.cause: s for s in find_throttles(root)}["average over-current (OC2)"]
    first = counter.read(10.0)
    assert (first.events, first.active, first.rate_hz) == (4, False, None)
    write(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "10\n"})
    grown = counter.read(12.0)
    assert (grown.events, grown.active, grown.rate_hz) == (10, True, pytest.approx(3.0))
    assert not counter.read(13.0).active
    write(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "1\n"})
    assert not counter.read(14.0).active, "the counter started again"


def test_a_cause_that_is_switched_off_is_left_out(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    write(root, {"sys/class/hwmon/hwmon3/oc1_throt_en": "0\n"})
    assert "under-voltage (OC1)" not in {s.cause for s in find_throttles(root)}


def test_the_cpus_own_counters_are_summed_over_cores_and_read_once_for_the_package(tmp_path: Path) -> None:
    states = {s.cause: s.read(0.0) for s in find_throttles(boards.laptop(tmp_path))}
    assert states["CPU core thermal limit"].events == 3 + 4
    assert states["CPU package thermal limit"].events == 9


def test_a_counter_that_cannot_be_read_is_not_active(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    counter = {s.cause: s for s in find_throttles(root)}["average over-current (OC2)"]
    counter.read(0.0)
    write(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "rubbish\n"})
    assert counter.read(1.0).events is None
    write(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "900\n"})
    assert not counter.read(2.0).active, "nothing is known of the time between"


def test_fans_of_every_kind(tmp_path: Path) -> None:
    jetson = [f.read() for f in find_fans(boards.orin_nano(tmp_path / "orin"))]
    assert [(f.name, f.duty, f.rpm) for f in jetson] == [("fan", pytest.approx(120 / 255), 2213)]
    old = [f.read() for f in find_fans(boards.nano(tmp_path / "nano"))]
    assert [(f.duty, f.rpm) for f in old] == [(pytest.approx(80 / 255), None)]
    laptop = [f.read() for f in find_fans(boards.laptop(tmp_path / "laptop"))]
    assert [(f.name, f.rpm) for f in laptop] == [("thinkpad fan1", 2500)]
