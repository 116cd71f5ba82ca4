from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.thermal import Trip, ZoneReading, find_zones
from tests.telemetry import boards
from tests.telemetry.trees import write


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


@pytest.mark.parametrize("name", boards.JETSONS)
def test_a_hot_drive_battery_or_radio_is_no_reason_to_compute_less(tmp_path: Path, name: str) -> None:
    root = boards.JETSONS[name](tmp_path)
    before = Monitor(root).read()
    chip = "sys/class/hwmon/hwmon40"
    write(root, {f"{chip}/name": "nvme\n", f"{chip}/temp1_input": "83000\n", f"{chip}/temp1_label": "Composite\n"})
    write(root, {f"{chip}/temp1_max": "84000\n", f"{chip}/temp1_crit": "85000\n"})
    for number, kind in enumerate(("battery", "BAT0", "iwlwifi_1", "wlan-therm", "charger-skin", "nvme0"), 40):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files = {"type": kind, "temp": "59000", "trip_point_0_type": "passive", "trip_point_0_temp": "60000"}
        write(root, {f"{zone}/{file}": text + "\n" for file, text in files.items()})
    now = Monitor(root).read()
    assert now.headroom_c == before.headroom_c
    assert {z.name for z in now.zones} - {z.name for z in before.zones} >= {"nvme Composite", "battery", "iwlwifi_1"}
    hot = next(z for z in now.zones if z.name == "nvme Composite")
    assert (hot.temp_c, hot.headroom_c) == (83.0, 1.0), "it is still shown, with its own limit"


@pytest.mark.parametrize("chip", ["coretemp", "k10temp", "amdgpu", "cpu_thermal"])
def test_chips_that_slow_themselves_down_count(tmp_path: Path, chip: str) -> None:
    base = "sys/class/hwmon/hwmon0"
    write(tmp_path, {f"{base}/name": chip + "\n", f"{base}/temp1_input": "90000\n", f"{base}/temp1_crit": "95000\n"})
    assert Monitor(tmp_path).read().headroom_c == 5.0


def test_boards_zones_of_any_name_count(tmp_path: Path) -> None:
    """An unknown zone with a trip point is taken for one that matters: to slow down for nothing is the lesser harm."""
    kinds = ("tj-thermal", "soc012-thermal", "Tboard_tegra", "AUX-therm", "acpitz", "bigcore0-thermal", "TSKN", "B0D4")
    root = boards.zones(tmp_path, dict.fromkeys(kinds, 40000))
    assert all(z.computes for z in find_zones(root))
