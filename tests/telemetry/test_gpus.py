from __future__ import annotations

from pathlib import Path

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
