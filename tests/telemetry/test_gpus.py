from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edgekit.telemetry import measure_energy, measured_period
from edgekit.telemetry.gpus import find_gpus
from edgekit.telemetry.nvml import find_nvml
from tests.data import ROOT
from tests.telemetry.nvml_stub import run_with_stub

READ = """
from edgekit.telemetry.gpus import find_gpus
boards, reason = find_gpus()
gpu = boards[0].read()
"""
SLOWED = READ + "print([t.cause for t in gpu.throttles if t.active])"


def test_a_board_tells_power_heat_clocks_and_limits(tmp_path: Path) -> None:
    code = READ + (
        "print(gpu.uuid, gpu.power_w, gpu.average_power_w, gpu.module_power_w, gpu.power_limit_w)\n"
        "print(gpu.temp_c, gpu.memory_temp_c, gpu.margin_c, [(t.kind, t.temp_c) for t in gpu.trips])\n"
        "print(gpu.clock_hz, gpu.memory_clock_hz, gpu.load, gpu.memory_share, gpu.violations_s)\n"
        "print(boards[0].limits(), [t for t in gpu.throttles if t.active], reason)"
    )
    assert run_with_stub(tmp_path, code).splitlines() == [
        "GPU-1234 81.25 70.25 None 700.0",
        "41.0 55.0 None [('passive', 87.0), ('critical', 92.0)]",
        "1980000000.0 3201000000.0 0.63 0.25 {'power cap': 2.5}",
        "PowerLimits(lowest_w=200.0, highest_w=700.0, default_w=700.0) []",
    ]


def test_old_drivers_without_fields_leave_the_average(tmp_path: Path) -> None:
    code = READ + "print(gpu.power_w, gpu.average_power_w, gpu.memory_temp_c, gpu.violations_s)"
    assert run_with_stub(tmp_path, code, FIELDS=13) == "70.5 70.5 None {}"


def test_bits_that_slow_the_gpu_are_causes_and_idle_is_not(tmp_path: Path) -> None:
    out = run_with_stub(tmp_path, SLOWED, MASK=0x1 | 0x2 | 0x10 | 0x100)
    assert out == "[]"
    out = run_with_stub(tmp_path, SLOWED, MASK=0x8 | 0x20 | 0x40 | 0x80)
    assert out == (
        "['GPU hardware slowdown', 'GPU software thermal slowdown', 'GPU hardware thermal slowdown', 'GPU power brake']"
    )


def test_a_power_cap_counts_only_below_the_rated_clock(tmp_path: Path) -> None:
    assert run_with_stub(tmp_path, SLOWED, MASK=0x4, CLOCK=1980) == "[]"
    assert run_with_stub(tmp_path, SLOWED, MASK=0x4, CLOCK=1200) == "['GPU software power cap']"


def test_orins_library_that_supports_nothing_is_a_sentence(tmp_path: Path) -> None:
    code = "from edgekit.telemetry.gpus import find_gpus\nprint(find_gpus())"
    assert run_with_stub(tmp_path, code, BARE=1, FIELDS=3) == (
        "([], 'NVML: the driver supports no reading of this GPU.')"
    )


def test_a_lost_gpu_is_one_problem_of_the_monitor(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry.monitor import Monitor
monitor = Monitor()
counts = []
for _ in range(3):
    now = monitor.read()
    counts.append((len(now.gpus), [p.name for p in now.powers if p.name.startswith("gpu")]))
print(counts, now.problems)
"""
    out = run_with_stub(tmp_path, code, LOST_AFTER=2)  # one reading while it is looked for, one of the monitor
    assert out == (
        "[(1, ['gpu GPU-1234']), (0, []), (0, [])] ('NVML: a GPU has fallen off the bus. Restart the machine.',)"
    )


def test_a_gpu_that_is_lost_from_the_start_is_a_sentence(tmp_path: Path) -> None:
    code = "from edgekit.telemetry.monitor import Monitor\nm = Monitor()\nprint(m.read().gpus, m.reasons[-1])"
    out = run_with_stub(tmp_path, code, LOST_AFTER=0)
    assert out == "() NVML: a GPU has fallen off the bus. Restart the machine."


def test_mig_instances_are_listed_under_their_board(tmp_path: Path) -> None:
    assert run_with_stub(tmp_path, READ + "print(gpu.mig)", MIG=2) == "('MIG-77000000-0', 'MIG-77000000-1')"


def test_counter_and_power_are_compared_in_joules_per_inference(tmp_path: Path) -> None:
    code = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
from scripts.gpu_energy import compare
print(json.dumps(compare(lambda: time.sleep(0.01), inferences=4, window_s=1.1, count=1)))
"""
    found = json.loads(run_with_stub(tmp_path, code, TIMED=80))  # the stub's power readings are 81.25 W
    assert found["ok"]
    for trial in found["trials"]:
        assert trial["power_w"] == pytest.approx(80, rel=0.15)
        assert trial["within_stated_uncertainty"]
        assert trial["counter_j_per_inference"] > 0.9 * 80 * 0.01 / 4
    assert found["period_ms_of_counter_and_power"][0] == pytest.approx(100, rel=0.3)
    assert found["idle_w_by_counter_and_power"][1] == pytest.approx(81.25)


@pytest.mark.gpu
def test_a_real_gpu_tells_its_energy_power_heat_and_clocks() -> None:
    boards, reason = find_gpus()
    assert boards, reason
    now = boards[0].read()
    assert now.power_w is not None
    assert 1 < now.power_w < 3000
    assert now.temp_c is not None
    assert now.clock_hz
    assert now.throttles
    for sensor in find_nvml(now.uuid).sensors:
        assert 0.005 < measured_period(sensor, limit_s=1.5) < 1.1
    with measure_energy(sensors=find_nvml(now.uuid)) as meter:
        time.sleep(2.5)
    assert meter.energies, str(meter)
    assert meter.energies[0].power_w == pytest.approx(now.power_w, rel=1.0)
