"""The CPU's own energy counters: RAPL of Intel and AMD, through Linux powercap."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgekit.errors import SensorError
from edgekit.telemetry.sensors import Found, Part, Sample
from edgekit.telemetry.sysfs import by_number, read_int, read_text, read_text_or_raise

POWERCAP = Path("sys/class/powercap")
PERIOD_S = 0.001
"""The counters advance about once a millisecond (Intel SDM, volume 3B, 15.10)."""


class Unwrapped:
    """A counter that wraps, from zero at the first reading on. It must be read at least once a wrap."""

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus
        self._last: int | None = None
        self.total = 0

    def add(self, raw: int) -> int:
        """The total after the reading `raw`."""
        if self._last is not None:
            self.total += (raw - self._last) % self._modulus
        self._last = raw
        return self.total


class RaplZone:
    """One counter, from zero at the first reading on, wraparound taken out."""

    def __init__(self, folder: Path) -> None:
        """Raises SensorError if the zone does not give its range."""
        self._file = folder / "energy_uj"
        range_uj = read_int(folder / "max_energy_range_uj")
        if range_uj is None or range_uj <= 0:
            raise SensorError(f"RAPL: '{folder.name}' gives no max_energy_range_uj, so its wraps cannot be told.")
        self._counter = Unwrapped(range_uj + 1)
        self.name = read_text(folder / "name") or folder.name

    def read_j(self) -> float:
        """Joules since the first reading; must be called at least once a wrap. Raises SensorError."""
        try:
            raw = int(read_text_or_raise(self._file))
        except (OSError, ValueError) as error:
            raise SensorError(f"RAPL: counter '{self.name}' cannot be read any more ({error}).") from error
        return self._counter.add(raw) / 1e6


class RaplSensor:
    """The sum of RAPL zones that do not overlap."""

    source: Literal["rapl"] = "rapl"
    period_s = PERIOD_S

    def __init__(self, zones: Sequence[RaplZone], *, name: str, scope: str, part: Part) -> None:
        self.name, self.scope = name, scope
        self.part: Part = part
        self._zones = tuple(zones)

    def read(self) -> Sample:
        """The counters' sum. Raises SensorError if one cannot be read."""
        before_s = time.monotonic()
        energy_j = sum(zone.read_j() for zone in self._zones)
        return Sample(t_s=(before_s + time.monotonic()) / 2, energy_j=energy_j)


def find_rapl(root: Path = Path("/")) -> Found:
    """RAPL under `root`: packages and DRAM as one sensor, psys (which contains them) as another.

    Core and graphics counters lie inside their package and are left out, as is the `intel-rapl-mmio` copy.
    """
    folders = by_number(root / POWERCAP, "intel-rapl:*")
    if not folders:
        return Found(
            reasons=("RAPL: this machine shows no /sys/class/powercap/intel-rapl (virtual machine, or not x86).",)
        )
    groups: dict[str, list[RaplZone]] = {"package": [], "dram": [], "psys": []}
    for folder in folders:
        kind = (read_text(folder / "name") or "").partition("-")[0]
        if kind not in groups:
            continue
        try:
            zone = RaplZone(folder)
            read_text_or_raise(folder / "energy_uj")
            zone.read_j()
        except PermissionError:
            return Found(
                reasons=(
                    "RAPL: the energy counters are readable by root only. "
                    "Run as root, or: sudo chmod -R a+r /sys/class/powercap/intel-rapl*/",
                )
            )
        except OSError as error:
            return Found(reasons=(f"RAPL: '{folder.name}' cannot be read ({error.strerror}).",))
        except SensorError as error:
            return Found(reasons=(str(error),))
        groups[kind].append(zone)
    sensors: list[RaplSensor] = []
    packages, dram = groups["package"], groups["dram"]
    if packages:
        many = f"{len(packages)} CPU packages" if len(packages) > 1 else "CPU package"
        scope = many + (" and DRAM" if dram else "")
        sensors.append(RaplSensor(packages + dram, name="rapl-cpu", scope=scope, part="cpu"))
    if groups["psys"]:
        scope = "whole platform (psys, contains the CPU package)"
        sensors.append(RaplSensor(groups["psys"], name="rapl-psys", scope=scope, part="platform"))
    if not sensors:
        return Found(reasons=("RAPL: /sys/class/powercap has no package counter.",))
    return Found(tuple(sensors))
