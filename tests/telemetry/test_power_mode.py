from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.telemetry.power_mode import PowerMode, parse_query, read_power_modes
from tests.telemetry import boards


def test_numbers_are_not_taken_for_an_order_of_power(tmp_path: Path) -> None:
    modes = read_power_modes(boards.orin_nano(tmp_path))
    assert modes is not None
    assert modes.current == PowerMode(2, "MAXN_SUPER")
    assert modes.default == PowerMode(1, "25W")
    assert [(m.id, m.name) for m in modes.choices] == [(0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")]
    assert modes.choices[3].command == "sudo nvpmodel -m 3"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", PowerMode(0, "MAXN")),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2\n", PowerMode(2, "MODE_30W")),
        ("NV Fan Mode:quiet\nNV Power Mode: 15W\n3\n", PowerMode(3, "15W")),
        ("NV Power Mode: 15W\n", None),
        ("", None),
        ("permission denied", None),
    ],
)
def test_what_the_query_prints(text: str, mode: PowerMode | None) -> None:
    assert parse_query(text) == mode


def test_another_machine_has_no_modes(tmp_path: Path) -> None:
    assert read_power_modes(boards.laptop(tmp_path)) is None


def test_without_the_answer_the_choices_and_a_reason_remain(tmp_path: Path) -> None:
    root = boards.xavier(tmp_path)
    (root / "edgekit/nvpmodel-query").unlink()
    modes = read_power_modes(root)
    assert modes is not None
    assert modes.current is None
    assert len(modes.choices) == 4
    assert "power mode" in modes.reason


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVPM WARN: x'; echo 'NV Power Mode: 90W'; echo 2", "PowerMode(id=2, name='90W')"),
        ("echo 'needs root' >&2; exit 1", "'needs root'. It may need sudo."),
    ],
)
def test_the_binary_is_asked_on_the_machine_itself(tmp_path: Path, script: str, said: str) -> None:
    binary = tmp_path / "nvpmodel"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    code = "from edgekit.telemetry.power_mode import read_power_modes\nprint(read_power_modes())"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said in done.stdout
