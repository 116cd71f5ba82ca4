from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.telemetry import Energy, energy_between
from edgekit.telemetry.capture import capture
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.replay import Replay, opened_root
from tests.telemetry import boards, trees


@pytest.mark.parametrize("name", [*boards.BOARDS])
@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_every_board_comes_back_as_it_was(tmp_path: Path, name: str, suffix: str) -> None:
    if suffix == "zst":
        pytest.importorskip("zstandard", reason="needs zstandard: pip install zstandard")
    root = boards.BOARDS[name](tmp_path / "tree")
    done = capture(tmp_path / f"board.tar.{suffix}", root=root, duration_s=0.01, interval_s=0.05)
    assert done.frames == 1
    with Replay(done.path) as replay:
        one, two = Monitor(root), Monitor(replay.root)
        assert two.identity == one.identity
        a, b = one.read(), two.read()
        for part in ("powers", "rails", "zones", "cpu_clocks", "gpu_clocks", "fans", "throttles", "modes"):
            assert getattr(a, part) == getattr(b, part), part
        where = replay.root
    assert not where.exists()


def test_a_recording_over_time_gives_the_energy_back(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path / "tree")
    (root / "edgekit/origin").unlink()
    current = root / "sys/class/hwmon/hwmon1/curr1_input"
    jumped: list[float] = []

    def tick(elapsed_s: float) -> None:  # 1 A, then 3 A from about the middle on
        if elapsed_s >= 0.4 and not jumped:
            jumped.append(elapsed_s)
            current.write_text("3000\n")

    current.write_text("1000\n")
    done = capture(tmp_path / "x.tar.gz", root=root, duration_s=0.8, interval_s=0.02, tick=tick)
    assert done.frames > 5
    assert done.origin.startswith("captured from NVIDIA Jetson Orin Nano")
    with Replay(done.path) as replay:
        samples = replay.samples()["jetson-rails"]
        energy = energy_between(samples, start_s=0.0, end_s=samples[-1].t_s, period_s=0.02, source="rail", scope="x")
    assert {round(s.power_w or 0, 3) for s in samples} == {4.984, 14.952}
    assert isinstance(energy, Energy)
    truth_j = 4.984 * jumped[0] + 14.952 * (samples[-1].t_s - jumped[0])
    assert abs(energy.energy_j - truth_j) <= energy.uncertainty_j


def test_files_that_come_and_go_do_so_in_the_replay(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path / "tree")
    temp, load = root / "sys/class/thermal/thermal_zone0/temp", root / "sys/class/devfreq/17000000.gpu/device/load"
    load.unlink()
    moments: list[float] = []

    def tick(elapsed_s: float) -> None:
        moments.append(elapsed_s)
        if len(moments) == 2:
            temp.unlink()
            load.write_text("100\n")

    done = capture(tmp_path / "x.tar.gz", root=root, duration_s=1.2, interval_s=0.1, tick=tick)
    with Replay(done.path) as replay:
        monitor = Monitor(replay.root, rediscover_s=0)
        first = monitor.read()
        assert replay.advance(moments[1] + 0.001), "there is more to come"
        assert monitor.read().zones == first.zones
        assert not replay.advance(10.0)
        last = monitor.read()
    assert (first.zones[0].temp_c, last.zones[0].temp_c) == (48.968, None)
    assert (first.gpu_clocks[0].load, last.gpu_clocks[0].load) == (None, 0.1)


def test_counters_go_on_in_a_replay(tmp_path: Path) -> None:
    root = boards.laptop(tmp_path / "tree")

    def tick(elapsed_s: float) -> None:
        trees.rapl(root, {"intel-rapl:0": ("package-0", 1_000_000 + round(elapsed_s * 20e6))})

    done = capture(tmp_path / "x.tar.gz", root=root, duration_s=0.3, interval_s=0.05, tick=tick)
    with Replay(done.path) as replay:
        samples = replay.samples()["rapl-cpu"]
    joules = [s.energy_j or 0.0 for s in samples]
    assert joules == sorted(joules)
    assert joules[-1] == pytest.approx(20 * samples[-2].t_s, rel=0.01), "each reading sees what the tick before wrote"


def archive(path: Path, members: dict[str, bytes], *, link: bool = False) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo("tree/x")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    return path


HEAD = json.dumps({"format": "edgekit board capture", "version": 1, "origin": "x"}).encode()


@pytest.mark.parametrize(
    ("members", "link"),
    [
        ({"capture.json": HEAD, "frames.jsonl": b"", "tree/../../x": b"1"}, False),
        ({"capture.json": HEAD, "frames.jsonl": b"", "/tree/x": b"1"}, False),
        ({"capture.json": HEAD, "frames.jsonl": json.dumps({"t_s": 0, "files": {"../x": "1"}}).encode()}, False),
        ({"capture.json": HEAD, "frames.jsonl": json.dumps({"t_s": 0, "files": {"a": 5}}).encode()}, False),
        ({"capture.json": HEAD, "frames.jsonl": b"{"}, False),
        ({"capture.json": HEAD.replace(b"1", b"2"), "frames.jsonl": b""}, False),
        ({"capture.json": b"[]", "frames.jsonl": b""}, False),
        ({"frames.jsonl": b""}, False),
        ({"capture.json": HEAD, "frames.jsonl": b""}, True),
    ],
)
def test_archives_that_are_no_captures_are_refused(tmp_path: Path, members: dict[str, bytes], link: bool) -> None:
    with pytest.raises(UsageError, match=r"x\.tar\.gz"):
        Replay(archive(tmp_path / "x.tar.gz", members, link=link))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar.gz"]


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_broken_files_are_one_sentence(tmp_path: Path, suffix: str) -> None:
    if suffix == "zst":
        pytest.importorskip("zstandard", reason="needs zstandard: pip install zstandard")
    done = capture(tmp_path / f"x.tar.{suffix}", root=boards.nano(tmp_path / "tree"), duration_s=0.01)
    whole = done.path.read_bytes()
    for data in (b"", b"hello", whole[:40], whole[: len(whole) // 2], whole[:60] + b"\xff" * 40 + whole[100:]):
        done.path.write_bytes(data)
        with pytest.raises(UsageError, match="capture"):
            Replay(done.path)


def test_a_root_is_a_folder_or_a_capture(tmp_path: Path) -> None:
    with opened_root(tmp_path) as (root, replay):
        assert (root, replay) == (tmp_path, None)
    with pytest.raises(UsageError, match="is not there"), opened_root(tmp_path / "absent"):
        pass
    done = capture(tmp_path / "x.tar.gz", root=boards.nano(tmp_path / "tree"), duration_s=0.01)
    with opened_root(done.path) as (root, replay):
        assert replay is not None
        assert (root / "sys/class/thermal").is_dir()
    with pytest.raises(UsageError, match="inside its 'with'"):
        _ = replay.root
