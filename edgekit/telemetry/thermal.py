"""Temperatures: thermal zones with their trip points, and the sensors of hwmon chips."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.telemetry.sysfs import Attribute, attribute, by_number, read_int, read_text

COLDEST_C, HOTTEST_C = -100.0, 250.0
"""Outside of these a value is no temperature: zones that are powered down answer -256 degrees."""
_ALARMING = ("passive", "hot", "critical")
"""Kinds of trip points that slow or stop the machine; `active` ones start a fan."""
_NO_SENSOR = re.compile(r"PMIC|thermal-fan-est", re.IGNORECASE)
"""Zones that measure nothing: Nano's PMIC-Die is always 100 degrees, thermal-fan-est is computed of others."""
_PERIPHERAL = re.compile(
    r"nvme|drivetemp|ssd|emmc|^bat(tery|t|\d|$)|battery|^bq\d|^max17\d|^sbs|charg|^chg"
    r"|wifi|wlan|^ath\d+k|^mt7\d|^rtw|wwan|modem|^mdm|^eth|^r8169|^igc|dimm|^spd\d|^jc42|usb|typec",
    re.IGNORECASE,
)
"""Zones of drives, batteries, radios, network ports and memory modules, whose limits slow those parts only."""
_PROCESSORS = re.compile(
    r"^(coretemp|k8temp|k10temp|zenpower|via_cputemp|cpu|gpu|soc|amdgpu|radeon|nouveau|i915|xe)", re.IGNORECASE
)
"""hwmon chips that slow themselves down at their limits. What others have are marks that nothing acts on."""


@dataclass(frozen=True, slots=True)
class Trip:
    """A temperature at which the kernel acts: `kind` is passive (slower), hot, critical (off) or active (fan)."""

    kind: str
    temp_c: float


@dataclass(frozen=True, slots=True)
class ZoneReading:
    """One temperature now. `temp_c` None: the zone is powered down or cannot be read.

    `computes`: its trip points slow down what computes, or stop the machine; those of a drive or a battery do not.
    """

    name: str
    temp_c: float | None
    trips: tuple[Trip, ...]
    computes: bool = True

    @property
    def next_trip(self) -> Trip | None:
        """The lowest trip point that slows or stops the machine and is not reached yet, else the highest."""
        trips = sorted((t for t in self.trips if t.kind in _ALARMING), key=lambda t: t.temp_c)
        if self.temp_c is None or not trips:
            return trips[0] if trips else None
        return next((t for t in trips if t.temp_c > self.temp_c), trips[-1])

    @property
    def headroom_c(self) -> float | None:
        """Degrees below the first trip point that slows or stops the machine; negative beyond it."""
        trips = [t.temp_c for t in self.trips if t.kind in _ALARMING]
        return min(trips) - self.temp_c if trips and self.temp_c is not None else None


@dataclass(frozen=True, slots=True)
class Zone:
    """One place whose temperature is measured, by the name that the kernel gives it."""

    name: str
    millidegrees: Attribute
    trips: tuple[Trip, ...]
    computes: bool = True

    def read(self) -> ZoneReading:
        """The temperature now. A zone that answers EAGAIN is powered down; asking again would not help."""
        return ZoneReading(self.name, degrees(self.millidegrees.integer()), self.trips, self.computes)


def degrees(millidegrees: int | None) -> float | None:
    """Degrees Celsius, or None for what no machine can have."""
    if millidegrees is None or not COLDEST_C < millidegrees / 1000 < HOTTEST_C:
        return None
    return millidegrees / 1000


def find_zones(root: Path = Path("/")) -> list[Zone]:
    """Every thermal zone, and the temperatures of hwmon chips that are no zone; equal names get a number."""
    zones: list[Zone] = []
    for folder in by_number(root / "sys/class/thermal", "thermal_zone*"):
        kind = read_text(folder / "type")
        if kind and not _NO_SENSOR.search(kind):
            zones.append(Zone(kind, Attribute(folder / "temp"), _trips(folder), not _PERIPHERAL.search(kind)))
    kinds = {z.name.replace("-", "_") for z in zones}
    for folder in by_number(root / "sys/class/hwmon", "hwmon*"):
        chip = read_text(folder / "name")
        if chip and chip.replace("-", "_") not in kinds:  # zones show up once more as hwmon chips
            zones += _hwmon_zones(folder, chip)
    seen: dict[str, int] = {}
    out = []
    for zone in zones:
        seen[zone.name] = count = seen.get(zone.name, 0) + 1
        out.append(zone if count == 1 else replace(zone, name=f"{zone.name} {count}"))
    return out


def _trips(folder: Path) -> tuple[Trip, ...]:
    trips = []
    for file in by_number(folder, "trip_point_*_temp"):
        kind = read_text(file.with_name(file.name.replace("_temp", "_type")))
        temp_c = degrees(read_int(file))
        if kind and temp_c is not None and temp_c > 0:  # 0 and below is a trip that is switched off
            trips.append(Trip(kind, temp_c))
    return tuple(trips)


def _hwmon_zones(folder: Path, chip: str) -> list[Zone]:
    zones = []
    for file in by_number(folder, "temp*_input"):
        stem = file.name.removesuffix("_input")
        if attribute(file) is None:
            continue
        label = read_text(folder / f"{stem}_label")
        limits = (("passive", degrees(read_int(folder / f"{stem}_max"))), ("critical", _critical(folder, stem)))
        trips = tuple(Trip(kind, temp_c) for kind, temp_c in limits if temp_c is not None and temp_c > 0)
        computes = bool(_PROCESSORS.match(chip))
        zones.append(Zone(f"{chip} {label}" if label else chip, Attribute(file), trips, computes))
    return zones


def _critical(folder: Path, stem: str) -> float | None:
    return degrees(read_int(folder / f"{stem}_crit"))
