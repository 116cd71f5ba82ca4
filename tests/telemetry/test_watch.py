from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from edgekit.telemetry import Watch
from edgekit.telemetry.exposition import lines
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.totals import Totals
from tests.telemetry import boards
from tests.telemetry.nvml_stub import run_with_stub
from tests.telemetry.trees import write

SAMPLE = re.compile(r'^[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+$')


def parsed(metrics: list[str]) -> dict[str, float]:
    """Series -> value; every line must be one that Prometheus takes, every metric is told before its first sample."""
    told: set[str] = set()
    out: dict[str, float] = {}
    for line in metrics:
        if line.startswith("# TYPE "):
            told.add(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.match(line), line
            series, _, value = line.rpartition(" ")
            assert series.partition("{")[0] in told
            assert series not in out
            out[series] = float(value)
    return out


@pytest.mark.parametrize("name", [*boards.BOARDS])
def test_every_board_has_metrics_in_base_units(tmp_path: Path, name: str) -> None:
    monitor, totals = Monitor(boards.BOARDS[name](tmp_path)), Totals()
    now = monitor.read()
    totals.add(now)
    metrics = parsed(list(lines(now, totals)))
    for series, value in metrics.items():
        assert not series.startswith("edgekit_temperature_celsius") or 20 < value < 60
        assert not series.startswith("edgekit_clock_hertz") or 1e7 < value < 1e10
    assert [s for s in metrics if s.startswith("edgekit_throttle_events_total")]


def test_the_names_that_dashboards_use(tmp_path: Path) -> None:
    root = boards.agx_orin(tmp_path)
    with Watch(root, interval_s=0.02) as watch:
        time.sleep(0.3)
        write(root, {"sys/class/hwmon/hwmon3/oc2_event_cnt": "5\n"})
        time.sleep(0.2)
        metrics = parsed(list(watch.metrics()))
        assert watch.now is not None
        assert watch.now.throttled[0] == "gpu-throttle-alert"
    assert metrics['edgekit_power_watts{rail="VDD_GPU_SOC"}'] == 4.0
    assert metrics['edgekit_power_watts{rail="board"}'] == 12.5
    assert metrics['edgekit_temperature_celsius{zone="tj-thermal"}'] == 49.062
    assert 'edgekit_temperature_celsius{zone="cv0-thermal"}' not in metrics, "powered down is no 0"
    assert metrics['edgekit_throttle_events_total{cause="gpu-throttle-alert"}'] == 1
    assert metrics['edgekit_throttle_events_total{cause="average over-current (OC2)"}'] == 5
    assert metrics['edgekit_throttled{cause="gpu-throttle-alert"}'] == 1
    joules = metrics['edgekit_energy_joules_total{rail="board",source="rail"}']
    assert 12.5 * 0.3 < joules < 12.5 * 20
    assert metrics["edgekit_thermal_headroom_celsius"] == pytest.approx(49.938)


def test_counters_never_go_back_between_two_readings_of_the_page(tmp_path: Path) -> None:
    with Watch(boards.orin_nano(tmp_path), interval_s=0.01) as watch:
        pages = []
        for _ in range(20):
            pages.append(parsed(list(watch.metrics())))
            time.sleep(0.01)
    series = [p['edgekit_energy_joules_total{rail="VDD_IN",source="rail"}'] for p in pages]
    assert series == sorted(series)
    assert series[-1] > series[0]


def test_before_the_first_reading_there_is_nothing(tmp_path: Path) -> None:
    watch = Watch(boards.nano(tmp_path))
    assert (watch.now, watch.totals, list(watch.metrics())) == (None, None, [])


def test_a_gpu_is_a_zone_and_a_rail(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry import Watch
with Watch() as watch:
    print(chr(10).join(watch.metrics()))
"""
    metrics = parsed(run_with_stub(tmp_path, code, GPUS=2, MASK=0x40).splitlines())
    assert metrics['edgekit_power_watts{rail="gpu GPU-1234"}'] == 81.25
    assert metrics['edgekit_temperature_celsius{zone="gpu GPU-1235 memory"}'] == 55
    assert metrics['edgekit_throttled{cause="GPU hardware thermal slowdown"}'] == 1
