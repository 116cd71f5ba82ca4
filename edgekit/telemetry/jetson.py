"""NVIDIA Jetson: which board this is, its software release, and its power as one sensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import SensorError
from edgekit.telemetry.rails import RailSensor, find_rails, total_of
from edgekit.telemetry.sensors import Found
from edgekit.telemetry.sysfs import read_text

SOCS = {"tegra210": "Nano", "tegra186": "TX2", "tegra194": "Xavier", "tegra234": "Orin", "tegra264": "Thor"}
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7.0 or 7.1", 39: "7.2"}


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


def find_jetson(root: Path = Path("/")) -> Found:
    """The power of the Jetson at `root`; nothing, and no reason, on another machine."""
    board = identify(root)
    if board is None:
        return Found()
    rails = find_rails(root)
    if not rails:
        old = board.jetpack == "4"
        where, driver = ("/sys/bus/i2c/drivers", "ina3221x") if old else ("/sys/class/hwmon", "ina3221")
        return Found(
            reasons=(
                f"Jetson: {board.model} shows no power monitor in {where}. "
                f"In a container, mount /sys; on a custom carrier board, load the {driver} driver.",
            )
        )
    total, scope = total_of(rails)
    sensor = RailSensor(total, scope=scope)
    try:
        sensor.read()
    except SensorError as error:
        return Found(reasons=(str(error),))
    return Found((sensor,))
