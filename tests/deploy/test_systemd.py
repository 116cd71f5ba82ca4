"""deploy/systemd/edgekit.service: systemd's own checks, and its command run as systemd would."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import ROOT
from tests.deploy.images import free_ports
from tests.serve.running import Client
from tests.tiny import tiny_package

UNIT = ROOT / "deploy/systemd/edgekit.service"
PROGRAM = "/opt/edgekit/bin/edgekit"
EXPOSURE = 2.0
"""Out of 10, as `systemd-analyze security` counts; a service without any hardening has 9.6."""


def settings() -> dict[str, list[str]]:
    """What the unit sets, by name."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("needs systemd-analyze, of the package systemd")
    return subprocess.run([tool, *arguments], capture_output=True, text=True)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))  # it must exist
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSistem="))
    assert "ProtectSistem" in analyze("verify", "--man=no", unit).stderr


def test_systemd_finds_little_that_the_service_could_reach() -> None:
    done = analyze("security", "--offline=true", "--no-pager", UNIT)
    if "offline" in done.stderr:
        pytest.skip("needs systemd 250 or later, whose systemd-analyze judges unit files")
    exposure = re.search(r"Overall exposure level for edgekit.service: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= EXPOSURE


def test_what_is_promised_of_it_is_set() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert unit[name] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    assert (unit["Restart"], unit["StartLimitIntervalSec"]) == (["always"], ["0"])
    devices = {line.split()[0] for line in unit["DeviceAllow"]}
    assert {"char-nv*", "char-drm", "/dev/nvmap"} <= devices


def test_its_command_tells_systemd_that_it_is_ready_and_alive(tmp_path: Path) -> None:
    unit = settings()
    (tmp_path / "models").mkdir()
    tiny_package(tmp_path / "models/tiny.edge")
    (command,) = unit["ExecStart"]
    ports = free_ports()
    for old, new in (("8000", ports[0]), ("8001", ports[1]), ("$EDGEKIT_MODELS", str(tmp_path / "models"))):
        assert old in command
        command = command.replace(old, new)
    words = command.removesuffix(" $EDGEKIT_OPTIONS").split()
    assert words[0] == PROGRAM
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": str(int(unit["WatchdogSec"][0]) * 1_000_000),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environment["NOTIFY_SOCKET"])
        manager.settimeout(20.0)
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", *words[1:]], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            assert manager.recv(4096).startswith(b"READY=1\n")
            with Client(f"http://127.0.0.1:{ports[0]}") as client:
                assert client.ask("GET", "/v2/health/ready").status == 200
            assert manager.recv(4096) == b"WATCHDOG=1"
            process.terminate()
            while not (told := manager.recv(4096)).startswith(b"STOPPING=1"):
                assert told == b"WATCHDOG=1"
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
