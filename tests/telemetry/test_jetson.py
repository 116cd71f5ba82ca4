from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import SensorError
from edgekit.telemetry import find_sensors
from edgekit.telemetry.jetson import find_jetson, identify
from tests.telemetry import boards, trees


def test_orin_nano_is_its_input_rail_and_never_the_sum(tmp_path: Path) -> None:
    root = trees.orin_nano(tmp_path)
    board = identify(root)
    assert board is not None
    assert (board.family, board.l4t, board.jetpack) == ("Orin", "36.4.3", "6")
    assert board.model.endswith("Developer Kit Super")
    found = find_jetson(root)
    (sensor,) = found.sensors
    assert found.reasons == ()
    assert sensor.read().power_w == pytest.approx(4.984 * 1.856)
    assert sensor.scope == "module rail VDD_IN"
    assert sensor.period_s == pytest.approx(0.08)


def test_agx_orin_is_the_sum_of_its_connected_rails(tmp_path: Path) -> None:
    (sensor,) = find_jetson(trees.agx_orin(tmp_path)).sensors
    assert sensor.read().power_w == pytest.approx(4.0 + 2.0 + 5.0 + 1.5)
    assert "NC" not in sensor.scope
    assert sensor.scope.endswith("(carrier board excluded)")


def test_thor_is_its_input_monitor_in_watts(tmp_path: Path) -> None:
    board = identify(trees.agx_thor(tmp_path))
    assert board is not None
    assert (board.family, board.jetpack) == ("Thor", "7.0 or 7.1")
    (sensor,) = find_jetson(tmp_path).sensors
    assert (sensor.scope, sensor.read().power_w) == ("module rail VIN", pytest.approx(41.25))


def test_a_rail_slightly_below_zero_reads_as_zero(tmp_path: Path) -> None:
    root = trees.jetson(tmp_path, model="AGX Thor", soc="tegra264", release="R38 (release), REVISION: 2.0")
    trees.ina3221(root, 1, [("VDD_GPU", 20000, -2)])
    (sensor,) = find_jetson(root).sensors
    assert sensor.read().power_w == 0


def test_a_jetson_without_a_monitor_says_what_to_do(tmp_path: Path) -> None:
    root = trees.jetson(tmp_path, model="Custom", soc="tegra234", release="R36 (release), REVISION: 4.0")
    found = find_sensors(root)
    assert found.sensors == ()
    assert "mount /sys" in found.reasons[0]


def test_jetpack_4_without_a_monitor_names_its_own_driver(tmp_path: Path) -> None:
    root = trees.jetson(tmp_path, model="Jetson Nano", soc="tegra210", release="R32 (release), REVISION: 7.1")
    assert "ina3221x" in find_jetson(root).reasons[0]


def test_nano_of_jetpack_4_is_its_input_rail(tmp_path: Path) -> None:
    board = identify(boards.nano(tmp_path))
    assert board is not None
    assert (board.family, board.jetpack, board.l4t) == ("Nano", "4", "32.7.1")
    (sensor,) = find_jetson(tmp_path).sensors
    assert (sensor.scope, sensor.read().power_w) == ("module rail POM_5V_IN", pytest.approx(3.238))


def test_another_machine_is_no_jetson_and_gives_no_reason(tmp_path: Path) -> None:
    assert identify(tmp_path) is None
    assert find_jetson(tmp_path).reasons == ()


def test_a_rail_that_turns_to_rubbish_is_one_named_error(tmp_path: Path) -> None:
    (sensor,) = find_jetson(trees.orin_nano(tmp_path)).sensors
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").write_text("")
    with pytest.raises(SensorError, match="VDD_IN"):
        sensor.read()
