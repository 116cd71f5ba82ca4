from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgekit.telemetry.monitor import Monitor, Power, Snapshot
from edgekit.telemetry.rails import RailReading
from edgekit.telemetry.throttle import Throttle
from edgekit.telemetry.totals import Totals
from tests.telemetry import boards
from tests.telemetry.nvml_stub import run_with_stub


@pytest.fixture
def empty(tmp_path: Path) -> Snapshot:
    return dataclasses.replace(Monitor(tmp_path).read(), t_s=0.0)


def test_power_is_integrated_and_counters_are_taken_as_they_are(empty: Snapshot) -> None:
    totals = Totals()
    for t_s, rail_w, counter_j in ((0.0, 10.0, 500.0), (1.0, 20.0, 507.0), (3.0, 20.0, 520.0)):
        totals.add(
            dataclasses.replace(
                empty,
                t_s=t_s,
                rails=(RailReading("VDD_IN", rail_w, None, None),),
                powers=(Power("rapl-cpu", "CPU package", "rapl", 999.0, counter_j), Power("x", "x", "power", rail_w)),
            )
        )
    assert totals.energy_j == {
        ("VDD_IN", "rail"): pytest.approx(15.0 + 40.0),
        ("rapl-cpu", "rapl"): pytest.approx(20.0),
        ("x", "power"): pytest.approx(55.0),
    }


def test_what_was_not_seen_is_not_counted(empty: Snapshot) -> None:
    totals = Totals()
    readings = ((0.0, 10.0), (1.0, None), (2.0, 10.0), (100.0, 10.0), (101.0, 10.0))
    for t_s, watts in readings:
        totals.add(dataclasses.replace(empty, t_s=t_s, rails=(RailReading("VDD_IN", watts, None, None),)))
    assert totals.energy_j == {("VDD_IN", "rail"): pytest.approx(10.0)}


def test_a_counter_that_starts_again_never_takes_back(empty: Snapshot) -> None:
    totals = Totals()
    for t_s, joules in enumerate((100.0, 110.0, 3.0, 5.0)):
        totals.add(dataclasses.replace(empty, t_s=float(t_s), powers=(Power("gpu", "GPU", "power", None, joules),)))
    assert totals.energy_j[("gpu", "power")] == pytest.approx(12.0)


def test_alerts_count_when_they_go_on_and_counters_by_their_growth(empty: Snapshot) -> None:
    totals = Totals()
    history = [(True, 7), (True, 7), (False, 9), (True, 9), (False, 2), (True, 4)]
    for t_s, (alert, events) in enumerate(history):
        causes = (Throttle("gpu-throttle-alert", alert), Throttle("OC2", False, events))
        totals.add(dataclasses.replace(empty, t_s=float(t_s), throttles=causes))
    assert totals.throttle_events == {"gpu-throttle-alert": 3, "OC2": 2 + 2}


def test_a_cause_of_two_gpus_counts_when_the_first_of_them_is_slowed(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.totals import Totals
monitor, totals = Monitor(), Totals()
for _ in range(3):
    totals.add(monitor.read())
print(totals.throttle_events["GPU power brake"], totals.throttle_events["GPU hardware slowdown"])
"""
    assert run_with_stub(tmp_path, code, GPUS=2, MASK=0x80) == "1 0"


def test_a_board_counts_every_rail_and_its_total(tmp_path: Path) -> None:
    monitor, totals = Monitor(boards.orin_nano(tmp_path)), Totals()
    for _ in range(3):
        totals.add(monitor.read())
    assert set(totals.energy_j) == {
        ("board", "rail"),
        ("VDD_IN", "rail"),
        ("VDD_CPU_GPU_CV", "rail"),
        ("VDD_SOC", "rail"),
    }
    assert totals.energy_j[("board", "rail")] == pytest.approx(totals.energy_j[("VDD_IN", "rail")])
    assert totals.energy_j[("board", "rail")] > 0
