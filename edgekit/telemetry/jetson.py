"""NVIDIA Jetson: which board this is, and the power that its rails carry (JetPack 5 to 7)."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.errors import SensorError
from edgekit.telemetry.sensors import Found, Sample
from edgekit.telemetry.sysfs import by_number, read_int, read_text

DEFAULT_PERIOD_S = 0.1
SOCS = {"tegra210": "Nano", "tegra186": "TX2", "tegra194": "Xavier", "tegra234": "Orin", "tegra264": "Thor"}
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7.0 or 7.1", 39: "7.2"}
_TOTALS = ("VIN", "VDD_IN")
"""Rails that carry the whole module, most complete first; without one, the total is the sum of the rails."""


@dataclass(frozen=True, slots=True)
class Board:
    """A Jetson: `model` as the board says, `soc` ("tegra234"), `l4t` ("36.4.3") and `jetpack` where known."""

    model: str
    soc: str
    l4t: str | None
    jetpack: str | None

    @property
    def family(self) -> str:
        """Nano, TX2, Xavier, Orin or Thor."""
        return SOCS[self.soc]


def identify(root: Path = Path("/")) -> Board | None:
    """The Jetson whose file tree is at `root`, or None if it is another machine."""
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    soc = next((s for s in SOCS if f"nvidia,{s}" in compatible.split("\0")), None)
    if soc is None:
        return None
    model = read_text(root / "proc/device-tree/model") or f"Jetson {SOCS[soc]}"
    release = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    if release is None:
        return Board(model, soc, None, None)
    major = int(release[1])
    return Board(model, soc, f"{major}.{release[2]}", _JETPACKS.get(major))


@dataclass(frozen=True, slots=True)
class Rail:
    """One supply rail. `millivolts` and `milliamperes` are files, or `microwatts` is the one that gives power."""

    label: str
    millivolts: Path | None
    milliamperes: Path | None
    microwatts: Path | None
    period_s: float

    def read_w(self) -> float:
        """Watts now; never negative (an idle rail reads slightly below zero). Raises SensorError."""
        if self.microwatts is not None:
            power = read_int(self.microwatts)
            watts = None if power is None else power / 1e6
        else:
            assert self.millivolts is not None
            assert self.milliamperes is not None
            volts, amperes = read_int(self.millivolts), read_int(self.milliamperes)
            watts = None if volts is None or amperes is None else volts * amperes / 1e6
        if watts is None:
            raise SensorError(f"Jetson: power rail {self.label} cannot be read any more.")
        return max(0.0, watts)


class RailSensor:
    """The board's power: one rail that carries all, or the sum of its rails."""

    source: Literal["rail"] = "rail"
    part: Literal["board"] = "board"
    name = "jetson-rails"

    def __init__(self, rails: Sequence[Rail], *, scope: str) -> None:
        self.rails = tuple(rails)
        self.scope = scope
        self.period_s = max(r.period_s for r in rails)

    def read(self) -> Sample:
        """Power of the rails together. Raises SensorError."""
        before_s = time.monotonic()
        power_w = sum(rail.read_w() for rail in self.rails)
        return Sample(t_s=(before_s + time.monotonic()) / 2, power_w=power_w)


def find_rails(root: Path = Path("/")) -> list[Rail]:
    """Every labelled rail of the INA3221 and INA238 monitors; unconnected channels (NC) are left out."""
    rails: list[Rail] = []
    for folder in by_number(root / "sys/class/hwmon", "hwmon*"):
        chip = read_text(folder / "name")
        interval_ms = read_int(folder / "update_interval")
        period_s = interval_ms / 1000 if interval_ms and interval_ms > 0 else DEFAULT_PERIOD_S
        if chip == "ina238":
            label = next((t for f in by_number(folder, "*label") if (t := read_text(f))), None)
            if label and (folder / "power1_input").exists():
                rails.append(Rail(label, None, None, folder / "power1_input", period_s))
        if chip != "ina3221":
            continue
        for channel in (1, 2, 3):  # 4 to 6 are shunt voltages, 7 their sum
            label = read_text(folder / f"in{channel}_label")
            volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
            if label and label != "NC" and volts.exists() and amperes.exists():
                rails.append(Rail(label, volts, amperes, None, period_s))
    return rails


def find_jetson(root: Path = Path("/")) -> Found:
    """The power of the Jetson at `root`; nothing, and no reason, on another machine."""
    board = identify(root)
    if board is None:
        return Found()
    if board.jetpack == "4":
        return Found(reasons=(f"Jetson: the power rails of {board.model} need JetPack 5 or later, this is JetPack 4.",))
    rails = find_rails(root)
    if not rails:
        return Found(
            reasons=(
                f"Jetson: {board.model} shows no power monitor in /sys/class/hwmon. "
                "In a container, mount /sys; on a custom carrier board, load the ina3221 driver.",
            )
        )
    total = next((r for label in _TOTALS for r in rails if r.label == label), None)
    if total is not None:
        sensor = RailSensor([total], scope=f"module rail {total.label}")
    else:
        scope = "sum of rails " + ", ".join(r.label for r in rails) + " (carrier board excluded)"
        sensor = RailSensor(rails, scope=scope)
    try:
        sensor.read()
    except SensorError as error:
        return Found(reasons=(str(error),))
    return Found((sensor,))
