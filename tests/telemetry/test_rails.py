from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.telemetry.rails import find_rails, short_scope, total_of
from tests.telemetry import boards, trees


def test_iio_channels_give_volts_amperes_and_the_drivers_own_watts(tmp_path: Path) -> None:
    rails = find_rails(boards.nano(tmp_path))
    assert [r.label for r in rails] == ["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"]
    whole = rails[0].read()
    assert (whole.power_w, whole.voltage_v, whole.current_a) == pytest.approx((3.238, 5.06, 0.64))
    assert whole.current_limit_a == 5.0


def test_thor_reads_microwatts_and_never_below_zero(tmp_path: Path) -> None:
    readings = {r.label: r.read() for r in find_rails(boards.thor(tmp_path))}
    assert set(readings) == {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"}, "the USB supply is no rail"
    assert readings["VIN"].power_w == pytest.approx(41.25)
    assert readings["VDD_GPU"].power_w == 0
    assert readings["VDD_GPU"].current_a == pytest.approx(-0.002)


@pytest.mark.parametrize(
    ("board", "scope"),
    [
        ("nano", "module rail POM_5V_IN"),
        ("xavier", "sum of rails GPU, CPU, SOC, CV, VDDRQ, SYS5V (carrier board excluded)"),
        ("orin_nano", "module rail VDD_IN"),
        ("thor", "module rail VIN"),
    ],
)
def test_the_total_is_the_input_rail_or_the_sum_where_there_is_none(tmp_path: Path, board: str, scope: str) -> None:
    assert total_of(find_rails(boards.JETSONS[board](tmp_path)))[1] == scope


def test_tx2_of_jetpack_4_has_its_input_rail_on_one_of_two_chips(tmp_path: Path) -> None:
    boards.iio(tmp_path, "0-0040", [("VDD_SYS_GPU", 19000, 40, 760), ("VDD_SYS_SOC", 19000, 35, 665)])
    boards.iio(tmp_path, "0-0041", [("VDD_IN", 19000, 200, 3800), ("VDD_SYS_CPU", 19000, 15, 285), ("NC", 0, 0, 0)])
    (total,), scope = total_of(find_rails(tmp_path))
    assert (scope, total.read().power_w) == ("module rail VDD_IN", 3.8)
    assert len(find_rails(tmp_path)) == 4


def test_an_alarm_of_the_monitor_chip_is_named(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    whole = find_rails(root)[0]
    assert whole.read().alarms == ()
    (root / "sys/class/hwmon/hwmon1/curr1_max_alarm").write_text("1\n")
    assert whole.read().alarms == ("above its average current limit",)
    assert whole.read().current_limit_a == 4.0


@pytest.mark.parametrize("text", ["32760\n", "0\n", "none\n", ""])
def test_a_limit_that_is_not_set_is_none(tmp_path: Path, text: str) -> None:
    root = boards.orin_nano(tmp_path)
    (root / "sys/class/hwmon/hwmon1/curr1_max").write_text(text)
    assert find_rails(root)[0].read().current_limit_a is None


def test_a_channel_without_a_label_or_a_current_is_no_rail(tmp_path: Path) -> None:
    trees.ina3221(tmp_path, 0, [("VDD_IN", 5000, 1), ("VDD_SOC", 5000, 1), ("", 5000, 1)])
    (tmp_path / "sys/class/hwmon/hwmon0/curr2_input").unlink()
    assert [r.label for r in find_rails(tmp_path)] == ["VDD_IN"]


def test_a_label_counts_the_rails_of_a_sum(tmp_path: Path) -> None:
    rails, scope = total_of(find_rails(boards.agx_orin(tmp_path)))
    assert short_scope(scope) == f"sum of {len(rails)} rails (carrier board excluded)"
    assert short_scope("module rail VDD_IN") == "module rail VDD_IN"
