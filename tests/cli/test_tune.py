from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from edgekit.cli.main import main
from edgekit.package import Package
from tests.tune.machine import NAMES, machine

QUICK = ["--seconds", "0.05", "--batch", "1,8", "--threads", "1", "--streams", "1"]


def test_power_modes_are_swept_the_commands_printed_and_the_mode_of_before_set_again(
    tiny: Package, tmp_path: Path
) -> None:
    board = machine(tmp_path, reboot=2)
    done = board.start(tiny.path, "--objective", "energy", "--variant", "fp32", *QUICK)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert board.log == [1, 0, 1, 2, 3, 1]  # allowed? each of four, and back
    assert board.mode == 1
    commands = out.split("to set the chosen point (*):\n")[1].split("\n")
    assert "power mode MAXN_SUPER was left out: power mode MAXN_SUPER is not taken without a reboot" in out
    report = json.loads((tiny.path / "reports" / "tune.json").read_text())
    assert {p["power"] for p in report["points"]} == {"15W", "25W", "7W"}
    watts = {p["power"]: p["power_w"] for p in report["points"]}
    assert watts["7W"] == pytest.approx(4.984 * 0.9, rel=0.01)
    assert watts["15W"] == pytest.approx(4.984 * 1.5, rel=0.01)
    chosen = report["chosen"]
    assert chosen == min(report["points"], key=lambda p: p["joules_per_sample"])
    assert commands[:2] == [
        f"  sudo nvpmodel -m {NAMES.index(chosen['power'])}",
        f"  edgekit serve tiny.edge --variant fp32 --threads 1 --instances 1 --max-batch {chosen['batch']}",
    ]
    assert report["scope"] == "module rail VDD_IN"
    assert (tiny.path / "reports" / "tune.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_however_it_ends_the_mode_is_that_of_before(tiny: Package, tmp_path: Path, number: signal.Signals) -> None:
    board = machine(tmp_path)
    process = board.start(tiny.path, "--objective", "latency", "--seconds", "20", "--batch", "1", "--streams", "1,2")
    board.wait_for(mode=0)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    board.wait_for(mode=1)
    assert not (tiny.path / "reports" / "tune.json").exists()


def test_limits_of_power_choose_among_modes_and_none_is_exit_code_1(tiny: Package, tmp_path: Path) -> None:
    board = machine(tmp_path)
    arguments = ["--objective", "latency", "--variant", "int8", *QUICK, "--no-plot"]
    done = board.start(tiny.path, *arguments, "--max-power", "8", "--json")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    report = json.loads(out)
    assert report["chosen"]["power"] in ("15W", "7W")
    assert all(p["power_w"] <= 8 for p in report["front"])
    done = board.start(tiny.path, *arguments, "--max-power", "1")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1, err
    assert "No point is within the limits: the lowest power is 4.49 W, 1 W is the limit" in out
    assert "nvpmodel" not in out
    assert board.mode == 1


def test_without_permission_the_rest_is_swept_and_that_is_said(tiny: Package, tmp_path: Path) -> None:
    board = machine(tmp_path)
    (board.here / "refuse").touch()
    (board.here / "sudo").write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    (board.here / "sudo").chmod(0o755)
    done = board.start(tiny.path, "--objective", "energy", *QUICK, "--no-plot")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert "Power modes are left as they are" in out
    assert "permission denied" in out
    assert set(board.log) == {1}
    assert "nvpmodel -m" not in out.split("to set the chosen point")[1]


def test_a_machine_that_cannot_be_set_back_says_the_command(tiny: Package, tmp_path: Path) -> None:
    board = machine(tmp_path)
    process = board.start(tiny.path, "--objective", "latency", "--seconds", "20", "--batch", "1", "--streams", "1")
    board.wait_for(mode=0)
    (board.here / "refuse").touch()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "could not be set back" in err
    assert "Run: sudo nvpmodel -m 1" in err


def test_a_machine_without_modes_or_sensors_sweeps_the_rest(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", str(tiny.path), "--objective", "latency", "--max-p99", "5s", "--root", str(tmp_path), *QUICK]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "This machine has no power modes" in out
    assert "energy is not measured: RAPL" in out
    assert "edgekit serve tiny.edge --variant" in out
    assert "batch 8, 1 thread, 1 stream: p99" in err
    assert main([*arguments, "--max-p99", "1us"]) == 1
    assert "the lowest p99 is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "energy"], "needs a sensor of what runs the model"),
        (["--objective", "latency", "--max-power", "15"], "--max-power needs a sensor"),
        (["--objective", "latency", "--max-power", "-1"], "--max-power must be positive"),
        (["--objective", "latency", "--max-p99", "20"], "expected a time with its unit"),
        (["--objective", "latency", "--batch", "1,x"], "expected numbers from 1"),
        (["--objective", "latency", "--seconds", "0"], "0.01 or more"),
        (["--objective", "latency", "--variant", "int4"], "it has fp32, int8"),
        (["--objective", "speed"], "invalid choice"),
        ([], "--objective"),
    ],
)
def test_misuse_is_one_sentence(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        code = main(["tune", str(tiny.path), "--root", str(tmp_path), *arguments])
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
