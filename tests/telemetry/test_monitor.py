from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.telemetry.monitor import Monitor, Snapshot
from tests.telemetry import boards, trees

EXPECTED = {
    "nano": ("4", 3.238, "MAXN", 59.0),
    "xavier": ("5", 5.187, "MODE_15W", 62.5),
    "orin_nano": ("6", 9.2503, "MAXN_SUPER", 49.938),
    "agx_orin": ("5", 12.5, "MAXN", 49.938),
    "thor": ("7.0 or 7.1", 41.25, "120W", 55.5),
}


def numbers(value: Any) -> Iterator[float]:
    """Every number in nested dataclasses."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


@pytest.mark.parametrize("name", EXPECTED)
def test_every_board_end_to_end(tmp_path: Path, name: str) -> None:
    jetpack, total_w, mode, headroom_c = EXPECTED[name]
    monitor = Monitor(boards.JETSONS[name](tmp_path))
    now = monitor.read()
    assert monitor.identity.origin.startswith("built, not captured")
    assert monitor.identity.board is not None
    assert monitor.identity.board.jetpack == jetpack
    assert monitor.reasons == ()
    (power,) = now.powers
    assert power.power_w == pytest.approx(total_w, abs=1e-3)
    assert now.modes is not None
    assert now.modes.current is not None
    assert now.modes.current.name == mode
    assert now.headroom_c == pytest.approx(headroom_c)
    assert now.throttled == (("gpu-throttle-alert",) if name == "agx_orin" else ())
    assert now.rails
    assert now.gpu_clocks
    assert now.cpu_clocks
    assert now.fans
    assert now.problems == ()
    assert now.memory_share == 0.25


def test_a_counter_becomes_watts_at_the_second_reading(tmp_path: Path) -> None:
    monitor = Monitor(boards.laptop(tmp_path))
    assert monitor.read().powers[0].power_w is None
    time.sleep(0.05)
    trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 2_000_000)})
    power = monitor.read().powers[0]
    assert power.scope == "CPU package"
    assert power.power_w is not None
    assert 0.1 < power.power_w < 20.1  # 1 J in at least 50 ms


def test_a_gpu_node_that_appears_late_is_found(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    devfreq = root / "sys/class/devfreq"
    hidden = devfreq.rename(root / "devfreq")
    monitor = Monitor(root, rediscover_s=0)
    assert monitor.read().gpu_clocks == ()
    hidden.rename(devfreq)
    assert monitor.read().gpu_clocks[0].name == "17000000.gpu"


def test_renumbered_devices_are_found_again_and_a_counters_rate_goes_on(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    monitor = Monitor(root, rediscover_s=0)
    before = monitor.read()
    hwmon = root / "sys/class/hwmon"
    (hwmon / "hwmon1").rename(hwmon / "hwmon9")
    (hwmon / "hwmon3").rename(hwmon / "hwmon11")
    after = monitor.read()
    assert [r.power_w for r in after.rails] == [r.power_w for r in before.rails]
    assert after.problems == ()


def test_a_failing_rail_is_reported_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    monitor = Monitor(root)
    (root / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    for _ in range(3):
        now = monitor.read()
    assert now.problems == ("Power rail VDD_IN cannot be read any more.",)
    assert now.powers[0].power_w is None
    assert now.rails[1].power_w is not None
    assert now.zones


def test_a_failing_counter_is_reported_once_and_dropped(tmp_path: Path) -> None:
    root = boards.laptop(tmp_path)
    monitor = Monitor(root)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    first, second = monitor.read(), monitor.read()
    assert len(first.problems) == 1
    assert "package-0" in first.problems[0]
    assert second.problems == first.problems
    assert second.powers == ()


def test_a_machine_with_nothing_gives_an_empty_reading_with_reasons(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    now = monitor.read()
    assert (now.powers, now.rails, now.zones, now.modes, now.headroom_c) == ((), (), (), None, None)
    assert "RAPL" in monitor.reasons[0]


def test_this_machine_can_be_read() -> None:
    monitor = Monitor()
    monitor.read()
    now = monitor.read()
    assert isinstance(now, Snapshot)
    assert now.memory_share is not None
    assert 0 < now.memory_share < 1


VALUES = st.one_of(
    st.binary(max_size=40),
    st.integers(min_value=-(10**30), max_value=10**30).map(lambda n: str(n).encode()),
    st.floats().map(lambda x: str(x).encode()),
    st.sampled_from([b"", b"\0\0", b"-256000\n", b"1_000", b"\xd9\xa3", b"NC\n", b"nan", b"9" * 4999, b"-0", b"0x10"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(board=st.sampled_from(sorted(boards.BOARDS)), seed=st.randoms(use_true_random=False), data=st.data())
def test_malformed_files_never_break_a_reading(
    tmp_path_factory: pytest.TempPathFactory, board: str, seed: Any, data: st.DataObject
) -> None:
    root = boards.BOARDS[board](tmp_path_factory.mktemp("tree"))
    files = sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    files = [f for f in files if not f.is_symlink()]
    for path in seed.sample(files, k=min(12, len(files))):
        path.write_bytes(data.draw(VALUES))
    monitor = Monitor(root, rediscover_s=0)
    for _ in range(2):
        now = monitor.read()
        assert all(math.isfinite(n) for n in numbers(now))
        json.loads(msgspec.json.encode(now))
        assert all(p.power_w is None or p.power_w >= 0 for p in now.powers)
