from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.telemetry.thermal import Trip, ZoneReading, find_zones
from tests.telemetry import boards


def test_zones_go_by_name_and_powered_down_ones_have_no_temperature(tmp_path: Path) -> None:
    readings = {z.name: z.read() for z in find_zones(boards.orin_nano(tmp_path))}
    assert readings["gpu-thermal"].temp_c == 47.562
    assert readings["cv0-thermal"].temp_c is None, "EAGAIN"
    assert readings["cv1-thermal"].temp_c is None, "-256 degrees"
    assert readings["tj-thermal"].headroom_c == pytest.approx(99 - 49.062)
    assert readings["cv0-thermal"].headroom_c is None


def test_zones_that_measure_nothing_are_left_out(tmp_path: Path) -> None:
    names = [z.name for z in find_zones(boards.nano(tmp_path))]
    assert names == ["AO-therm", "CPU-therm", "GPU-therm", "PLL-therm"]


def test_a_laptops_chips_are_zones_and_none_is_listed_twice(tmp_path: Path) -> None:
    readings = {z.name: z.read() for z in find_zones(boards.laptop(tmp_path))}
    assert {n: r.temp_c for n, r in readings.items()} == {
        "acpitz": 45,
        "acpitz 2": 44,
        "x86_pkg_temp": 52,
        "coretemp Package id 0": 52,
    }
    assert readings["coretemp Package id 0"].trips == (Trip("passive", 100), Trip("critical", 105))


def test_the_next_trip_is_the_first_above_that_slows_or_stops() -> None:
    trips = (Trip("critical", 105.0), Trip("active", 40.0), Trip("passive", 95.0))
    assert ZoneReading("x", 60.0, trips).next_trip == Trip("passive", 95.0)
    assert ZoneReading("x", 96.0, trips).next_trip == Trip("critical", 105.0)
    assert ZoneReading("x", 96.0, trips).headroom_c == -1.0
    assert ZoneReading("x", 120.0, trips).next_trip == Trip("critical", 105.0)
    assert ZoneReading("x", 60.0, (Trip("active", 70.0),)).next_trip is None
