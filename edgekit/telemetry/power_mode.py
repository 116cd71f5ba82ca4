"""A Jetson's power mode: `nvpmodel`, its configuration file, and the modes to choose from.

Mode numbers are not in order of power, and a mode's name caps clocks, not watts. Some changes need a reboot.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekit.telemetry.sysfs import read_text

QUERY_FILE = "edgekit/nvpmodel-query"
"""In a recorded tree: what `nvpmodel -q` printed."""
_TIMEOUT_S = 5.0
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=(\S+)\s*>")
_DEFAULT = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>")


@dataclass(frozen=True, slots=True)
class PowerMode:
    """One power mode by its number and name."""

    id: int
    name: str

    @property
    def command(self) -> str:
        """The command that sets it."""
        return f"sudo nvpmodel -m {self.id}"


@dataclass(frozen=True, slots=True)
class PowerModes:
    """The mode that is set, those to choose from, and the one a new board has; `reason` says what is missing."""

    current: PowerMode | None
    choices: tuple[PowerMode, ...] = ()
    default: PowerMode | None = None
    reason: str = ""


def parse_query(text: str) -> PowerMode | None:
    """The mode in what `nvpmodel -q` prints: lines of warnings, `NV Power Mode: MAXN`, then its number."""
    lines = [line.strip() for line in text.splitlines()]
    for i, line in enumerate(lines):
        key, colon, name = line.partition(":")
        if colon and key.strip() == "NV Power Mode":
            number = next((one for one in lines[i + 1 :] if re.fullmatch(r"\d{1,4}", one)), None)
            return None if number is None else PowerMode(int(number), name.strip())
    return None


def parse_configuration(text: str) -> tuple[tuple[PowerMode, ...], PowerMode | None]:
    """The modes in /etc/nvpmodel.conf, in the file's order, and the default one."""
    modes = tuple(PowerMode(int(number), name) for number, name in _MODEL.findall(text))
    default = _DEFAULT.search(text)
    return modes, next((m for m in modes if default and m.id == int(default[1])), None)


def read_power_modes(root: Path = Path("/")) -> PowerModes | None:
    """The power modes of the Jetson at `root`; None on a machine that has none.

    On this machine `nvpmodel -q` is run, which takes some 10 ms; for any other tree its recorded answer is read.
    """
    choices, default = parse_configuration(read_text(root / "etc/nvpmodel.conf") or "")
    answer, reason = _query() if root == Path("/") else (read_text(root / QUERY_FILE), "")
    current = parse_query(answer) if answer else None
    if current is not None:
        return PowerModes(current, choices, default)
    if not choices and not reason:
        return None
    return PowerModes(None, choices, default, reason or "The power mode is not known: no nvpmodel could be asked here.")


def _query() -> tuple[str | None, str]:
    binary = shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin:/sbin")
    if binary is None:
        return None, ""
    try:
        done = subprocess.run([binary, "-q"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"The power mode is not known: nvpmodel -q failed ({type(error).__name__})."
    if parse_query(done.stdout) is None:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
        return None, f"The power mode is not known: nvpmodel -q says '{said[:120]}'. It may need sudo."
    return done.stdout, ""
