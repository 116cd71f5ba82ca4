from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.cli.main import main
from tests.data import ROOT
from tests.telemetry import boards
from tests.telemetry.nvml_stub import run_with_stub

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("name", [*boards.JETSONS])
def test_one_reading_of_every_board_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    root = boards.JETSONS[name](tmp_path)
    assert main(["monitor", "--once", "--root", str(root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["identity"]["origin"].startswith("built, not captured")
    assert document["powers"][0]["power_w"] > 3
    assert document["modes"]["current"]["name"]
    assert document["headroom_c"] > 40
    assert document["problems"] == []
    assert document["throttled"] == (["gpu-throttle-alert"] if name == "agx_orin" else [])


@pytest.mark.parametrize("name", [*boards.BOARDS])
def test_every_board_fits_80_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    assert main(["monitor", "--once", "--root", str(boards.BOARDS[name](tmp_path))]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("throttle") for line in lines)


def test_what_a_person_looks_for_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["monitor", "--once", "--root", str(boards.agx_orin(tmp_path))]) == 0
    out = capsys.readouterr().out
    for text in (
        "12.50 W  sum of 4 rails",
        "power mode MAXN (0)",
        "NOW  gpu-throttle-alert",
        "powered down: cv0-thermal",
        "1300 MHz, pinned",
        "99 C passive",
        "built, not captured",
    ):
        assert text in out, text


def test_a_server_of_many_cores_is_summed_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    boards.cpus(tmp_path, {n: (str(n), 1_000_000 + n * 1000) for n in range(64)})
    boards.zones(tmp_path, {f"zone{n}": 30_000 + n * 1000 for n in range(30)})
    assert main(["monitor", "--once", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mean of 64, from 1000 to 1063" in out
    assert "59.0 C" in out
    assert "and 20 cooler zones" in out
    assert len(out.splitlines()) < 24


def test_several_gpus_are_told_apart_within_80_columns(tmp_path: Path) -> None:
    code = "from edgekit.cli.main import main\nraise SystemExit(main(['monitor', '--once']))"
    out = run_with_stub(tmp_path, code, GPUS=2, MIG=2, MASK=0x44, CLOCK=1500)
    for text in (
        "81.25 W  GPU board Test GPU GPU-1235",
        "41.0 C  GPU-1234  ██████░░░░░░ 87 C passive",
        "1500 MHz  GPU-1235 of 1980 MHz  ████████░░░░ 63% load",
        "memory 25% in use at 55 C, power limit 700 W",
        "2 MIG instances; power is of the whole board",
        "NOW  GPU hardware thermal slowdown of GPU-1234",
    ):
        assert text in out, text
    body = [line for line in out.splitlines() if "RAPL" not in line]
    assert max(len(line.rstrip()) for line in body) <= 80
    alone = run_with_stub(tmp_path, code)
    assert "1980 MHz  Test GPU of 1980 MHz" in alone


def test_rows_of_csv_hold_every_reading(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root, file = boards.orin_nano(tmp_path / "tree"), tmp_path / "run.csv"
    args = ["monitor", "--root", str(root), "--interval", "0.05", "--duration", "0.3"]
    assert main([*args, "--csv", str(file), "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    power = [float(r["value"]) for r in rows if (r["name"], r["quantity"]) == ("VDD_IN", "power")]
    assert power == pytest.approx([9.250304] * len(documents))
    assert len(documents) >= 2
    assert {r["unit"] for r in rows} >= {"W", "V", "A", "C", "Hz", "1", "rpm"}
    assert not [r for r in rows if r["name"] == "cv0-thermal"], "what was not measured is no row"
    assert main([*args, "--csv", str(file)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*args, "--csv", str(file), "--force"]) == 0


def test_csv_to_stdout_is_nothing_but_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["monitor", "--once", "--root", str(boards.nano(tmp_path)), "--csv", "-"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["unix_s", "t_s", "part", "name", "quantity", "unit", "value"]
    assert {len(r) for r in rows} == {7}
    assert main(["monitor", "--once", "--csv", "-", "--json"]) == 2


def test_parquet_holds_the_same_or_says_what_to_install(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root, file = boards.nano(tmp_path / "tree"), tmp_path / "run.parquet"
    code = main(["monitor", "--once", "--root", str(root), "--parquet", str(file)])
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        assert code == 2
        assert "pip install pyarrow" in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["tree"]
        return
    assert code == 0
    table = pyarrow.parquet.read_table(file).to_pylist()
    (power,) = [r["value"] for r in table if (r["name"], r["quantity"]) == ("POM_5V_IN", "power")]
    assert power == pytest.approx(3.238)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.parquet", "tree"]


def test_no_file_is_begun_if_one_of_them_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    root, rows, table = boards.nano(tmp_path / "tree"), tmp_path / "run.csv", tmp_path / "run.parquet"
    args = ["monitor", "--once", "--root", str(root), "--csv", str(rows), "--parquet", str(table)]
    assert main(args) == 2
    assert "pip install 'edgekit[batch]'" in capsys.readouterr().err
    assert not rows.exists()
    table.write_text("mine")
    assert main(args) == 2
    assert "--force" in capsys.readouterr().err
    assert not rows.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--interval", "0"], "must be positive"),
        (["--duration", "-1"], "must be positive"),
        (["--root", "/nowhere/at/all"], "is not there"),
        (["--csv", "/nowhere/run.csv"], "does not exist"),
    ],
)
def test_misuse(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(["monitor", "--once", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_capture_is_recorded_and_played(edgekit: Run, tmp_path: Path) -> None:
    root, archive = boards.orin_nano(tmp_path / "tree"), tmp_path / "orin.tar.gz"
    made = edgekit(
        "board", "capture", "-o", archive, "--root", root, "--duration", "0.4", "--interval", "0.1", "--json"
    )
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["frames"] >= 4
    assert document["bytes"] == archive.stat().st_size
    played = edgekit("monitor", "--root", archive, "--interval", "0.1", "--json")
    assert played.returncode == 0, played.stderr
    readings = [json.loads(line) for line in played.stdout.splitlines()]
    assert len(readings) >= 3, "it ends when the capture ends"
    assert {r["rails"][0]["power_w"] for r in readings} == {9.250304}
    assert edgekit("board", "capture", "-o", archive, "--root", root).returncode == 2
    assert edgekit("monitor", "--once", "--root", root / "etc/nvpmodel.conf").returncode == 2


def test_ctrl_c_ends_a_recording_and_keeps_it(tmp_path: Path) -> None:
    root, archive = boards.nano(tmp_path / "tree"), tmp_path / "x.tar.gz"
    command = [sys.executable, "-m", "edgekit", "board", "capture", "-o", archive, "--root", root, "--interval", "0.05"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "readings over" in out
    assert archive.exists()


def test_the_live_view_redraws_in_a_terminal_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    root = boards.orin_nano(tmp_path)
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "edgekit", "monitor", "--root", str(root), "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen: list[bytes] = []

    def pump() -> None:
        try:
            while piece := os.read(leader, 65536):
                seen.append(piece)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=pump)
    reader.start()
    deadline = time.monotonic() + 20
    while b"".join(seen).count(b"VDD_CPU_GPU_CV") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=20)
    reader.join(timeout=5)
    os.close(leader)
    text = b"".join(seen).decode()
    assert code == 0, text
    assert text.count("VDD_CPU_GPU_CV") >= 3
    assert "\x1b[" in text
    assert "█" in text
    assert "Traceback" not in text


def test_the_commands_of_the_page_run_and_its_picture_is_what_is_printed(edgekit: Run, tmp_path: Path) -> None:
    page = (ROOT / "docs/energy.md").read_text()
    root = boards.orin_nano(tmp_path / "tree")
    commands = re.findall(
        r"^edgekit ((?:monitor|board) .*)$", "".join(re.findall(r"^```\w+\n(.*?)^```$", page, re.M | re.S)), re.M
    )
    assert len(commands) >= 5
    for command in commands:
        args = command.split()
        done = edgekit(*args, *([] if "--root" in args else ["--root", root]), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    picture = edgekit("monitor", "--once", "--root", root).stdout
    assert "\n".join(line.rstrip() for line in picture.splitlines()).strip() in page
