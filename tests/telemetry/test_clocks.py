from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.telemetry.clocks import CpuLoad, find_cpu_clocks, find_gpu_clocks, read_memory_share
from edgekit.telemetry.sysfs import Attribute
from tests.telemetry import boards
from tests.telemetry.trees import write


def test_cpus_that_change_speed_together_are_one_clock(tmp_path: Path) -> None:
    clocks = [c.read() for c in find_cpu_clocks(boards.orin_nano(tmp_path))]
    assert [(c.name, c.now_hz, c.max_hz) for c in clocks] == [
        ("cpu 0-3", 1.344e9, 1.728e9),
        ("cpu 4-5", 0.7296e9, 1.728e9),
    ]
    assert not clocks[0].pinned


@pytest.mark.parametrize(
    ("board", "name", "hertz", "load"),
    [
        ("nano", "57000000.gpu", 76e6, 0.12),
        ("xavier", "17000000.gv11b", 318e6, 0.037),
        ("orin_nano", "17000000.gpu", 306e6, 0.452),
        ("agx_orin", "17000000.ga10b", 1300e6, 0.987),
        ("thor", "gpu-gpc-0", 315e6, None),
    ],
)
def test_the_gpu_of_each_board(tmp_path: Path, board: str, name: str, hertz: float, load: float | None) -> None:
    clock = find_gpu_clocks(boards.JETSONS[board](tmp_path))[0].read()
    assert (clock.name, clock.now_hz, clock.load) == (name, hertz, load)
    assert clock.pinned is (board == "agx_orin")


def test_other_devfreq_nodes_are_no_gpu(tmp_path: Path) -> None:
    boards.gpu(tmp_path, "31b0000.emc", mhz=1, lowest=1, highest=1)
    assert find_gpu_clocks(tmp_path) == []


def test_load_is_what_was_not_idle_between_two_readings(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    load = CpuLoad(root)
    assert load.read() is None
    write(root, {"proc/stat": "cpu  160 0 60 820 60 0 0 0 0 0\n"})  # 70 busy, 30 idle or waiting for the disk
    assert load.read() == pytest.approx(0.7)
    write(root, {"proc/stat": "cpu  nonsense\n"})
    assert load.read() is None


def test_memory_in_use(tmp_path: Path) -> None:
    assert read_memory_share(Attribute(boards.orin_nano(tmp_path) / "proc/meminfo")) == 0.25
    assert read_memory_share(Attribute(tmp_path / "absent")) is None
