"""An Orin Nano that is a tree of files, whose fake `nvpmodel` sets a mode by changing the current of its rail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.telemetry import boards

NAMES = ("15W", "25W", "MAXN_SUPER", "7W")
SCRIPT = """#!/bin/sh
set -e
case "$1" in
-q) echo "NVPM WARN: fan mode is not set!"
    echo "NV Power Mode: $(sed -n "$(($(cat '{here}/mode') + 1))p" '{here}/names')"
    cat '{here}/mode' ;;
-m) echo "$2" >> '{here}/log'
    if [ -f '{here}/refuse' ]; then echo 'permission denied' >&2; exit 1; fi
    read answer
    if [ "$2" = "{reboot}" ]; then echo "reboot required, you said $answer"; exit 0; fi
    echo "$2" > '{here}/mode'
    sed -n "$(($2 + 1))p" '{here}/milliamperes' > '{rail}.new' && mv '{rail}.new' '{rail}' ;;
esac
"""


@dataclass
class Machine:
    """The tree to give as --root, and where the fake program keeps its mode."""

    root: Path
    here: Path

    @property
    def mode(self) -> int:
        """The number of the mode that is set."""
        return int((self.here / "mode").read_text() or -1)

    @property
    def log(self) -> list[int]:
        """Every mode that was asked for, in order."""
        path = self.here / "log"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        """Finds the fake program first."""
        return {**os.environ, "PATH": f"{self.here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def start(self, package: Path, *arguments: str) -> subprocess.Popen[str]:
        """`edgekit tune PACKAGE` on this machine."""
        command = [sys.executable, "-m", "edgekit", "tune", str(package), "--root", str(self.root), *arguments]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, *, mode: int, seconds: float = 60) -> None:
        """Until that mode is set."""
        deadline = time.monotonic() + seconds
        while self.mode != mode:
            assert time.monotonic() < deadline, f"mode {mode} was not set; it is {self.mode}, asked for {self.log}"
            time.sleep(0.02)


def machine(folder: Path, *, reboot: int = -1) -> Machine:
    """The machine in mode 1 (25W). Mode `reboot` is taken after a reboot only."""
    root, here = boards.orin_nano(folder / "orin"), folder / "bin"
    here.mkdir()
    rail = root / "sys/class/hwmon/hwmon1/curr1_input"
    for chip in root.glob("sys/class/hwmon/*/update_interval"):
        chip.write_text("2\n")
    (here / "mode").write_text("1\n")
    (here / "names").write_text("\n".join(NAMES) + "\n")
    (here / "milliamperes").write_text("1500\n2200\n3600\n900\n")
    program = here / "nvpmodel"
    program.write_text(SCRIPT.format(here=here, rail=rail, reboot=reboot))
    program.chmod(0o755)
    return Machine(root, here)
