from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import __version__
from edgekit.cli.main import COMMANDS, main
from edgekit.package import Package

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_help_lists_every_command(edgekit: Run) -> None:
    done = edgekit("--help")
    assert done.returncode == 0
    for name, what in COMMANDS.items():
        assert name in done.stdout
        assert what in done.stdout


def test_version(edgekit: Run) -> None:
    assert edgekit("--version").stdout == f"edgekit {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, edgekit: Run) -> None:
    done = edgekit(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert "exit codes" in done.stdout


def test_misspelt_commands_and_arguments_are_misuse(edgekit: Run) -> None:
    done = edgekit("quantise", "x.edge")
    assert done.returncode == 2
    assert "Did you mean 'quantize'?" in done.stderr
    done = edgekit("verify")
    assert done.returncode == 2
    assert "edgekit verify --help" in done.stderr
    assert edgekit("--no-such-flag").returncode == 2


def test_errors_are_one_sentence_on_stderr_and_json_on_stdout(edgekit: Run, tmp_path: Path) -> None:
    done = edgekit("verify", tmp_path / "none.edge", "--json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 2
    assert document["error"] in done.stderr


def test_debug_shows_the_traceback(edgekit: Run, tmp_path: Path) -> None:
    done = edgekit("verify", tmp_path / "none.edge", "--debug")
    assert "Traceback" in done.stderr


def test_a_reader_that_leaves_is_no_error(tiny: Package) -> None:
    command = f"{sys.executable} -m edgekit verify {tiny.path} --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_ctrl_c_is_130(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, edgekit.cli.doctor as d\n"
        "def run(args): raise KeyboardInterrupt\n"
        "d.run = run\nfrom edgekit.cli.main import main\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "edgekit: interrupted; nothing half-done was left behind\n"


def test_no_arguments_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out
