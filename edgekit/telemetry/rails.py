"""Power rails of a Jetson: INA3221 monitors through IIO (JetPack 4) and hwmon (5 to 7), INA238 on Thor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.errors import SensorError
from edgekit.telemetry.sensors import Sample
from edgekit.telemetry.sysfs import Attribute, attribute, by_number, read_int, read_text, whole

DEFAULT_PERIOD_S = 0.1
"""Where the driver does not tell its `update_interval`."""
TOTALS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that carry the whole module, most complete first; without one, the total is the sum of the rails."""
_SUM, _EXCLUDED = "sum of rails ", " (carrier board excluded)"
_NO_LIMIT_MA = 32_760
"""What the monitor's limit register holds when it is not set."""
_ALARMS = {"max_alarm": "above its average current limit", "crit_alarm": "above its instantaneous current limit"}


@dataclass(frozen=True, slots=True)
class RailReading:
    """One rail now, in volts, amperes and watts; None is not measured. Power is never below 0.

    `alarms` are limits that the monitor chip says are exceeded.
    """

    label: str
    power_w: float | None
    voltage_v: float | None
    current_a: float | None
    current_limit_a: float | None = None
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rail:
    """One supply rail. `milliwatts` or `microwatts` gives power, else `millivolts` times `milliamperes` does."""

    label: str
    period_s: float
    millivolts: Attribute | None = None
    milliamperes: Attribute | None = None
    milliwatts: Attribute | None = None
    microwatts: Attribute | None = None
    current_limit_a: float | None = None
    alarms: tuple[tuple[str, Attribute], ...] = ()

    def read(self) -> RailReading:
        """The rail now; values that cannot be read are None."""
        volts, amperes = _scaled(self.millivolts, 1e3), _scaled(self.milliamperes, 1e3)
        watts = _scaled(self.microwatts, 1e6)
        if watts is None:
            watts = _scaled(self.milliwatts, 1e3)
        if watts is None and volts is not None and amperes is not None:
            watts = volts * amperes
        exceeded = tuple(words for words, flag in self.alarms if flag.integer() == 1)
        power_w = None if watts is None else max(0.0, watts)  # an idle rail may read slightly below zero
        return RailReading(self.label, power_w, volts, amperes, self.current_limit_a, exceeded)

    def read_w(self) -> float:
        """Watts now. Raises SensorError."""
        power_w = self.read().power_w
        if power_w is None:
            raise SensorError(f"Jetson: power rail {self.label} cannot be read any more.")
        return power_w


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


def total_of(rails: Sequence[Rail]) -> tuple[tuple[Rail, ...], str]:
    """The rails whose sum is the module's power, and what that covers in words.

    A rail that feeds all others is the total by itself: adding those it feeds would count them twice.
    """
    for label in TOTALS:
        for rail in rails:
            if rail.label == label:
                return (rail,), f"module rail {label}"
    return tuple(rails), _SUM + ", ".join(r.label for r in rails) + _EXCLUDED


def short_scope(scope: str) -> str:
    """A scope for a label: of rails that are summed, how many there are instead of their names."""
    if not scope.startswith(_SUM):
        return scope
    return f"sum of {scope.count(',') + 1} rails{_EXCLUDED}"


def find_rails(root: Path = Path("/")) -> list[Rail]:
    """Every labelled rail of the power monitors under `root`; unconnected channels (NC) are left out."""
    return [*_iio_rails(root), *_hwmon_rails(root)]


def _iio_rails(root: Path) -> Iterator[Rail]:
    """JetPack 4: channels count from 0, power is a file of its own."""
    for chip in by_number(root / "sys/bus/i2c/drivers/ina3221x", "*-00*"):
        for folder in by_number(chip, "iio:device*"):
            for channel in range(3):
                label = read_text(folder / f"rail_name_{channel}")
                milliwatts = attribute(folder / f"in_power{channel}_input")
                if not label or label == "NC" or milliwatts is None:
                    continue
                yield Rail(
                    label,
                    DEFAULT_PERIOD_S,
                    millivolts=attribute(folder / f"in_voltage{channel}_input"),
                    milliamperes=attribute(folder / f"in_current{channel}_input"),
                    milliwatts=milliwatts,
                    current_limit_a=_limit(folder / f"crit_current_limit_{channel}"),
                )


def _hwmon_rails(root: Path) -> Iterator[Rail]:
    """JetPack 5 to 7: channels count from 1; 4 to 6 are shunt voltages and 7 their sum, which carry no current."""
    for folder in by_number(root / "sys/class/hwmon", "hwmon*"):
        chip = read_text(folder / "name")
        interval_ms = read_int(folder / "update_interval")
        period_s = interval_ms / 1000 if interval_ms and 0 < interval_ms < 60_000 else DEFAULT_PERIOD_S
        if chip == "ina238":
            yield from _ina238(folder, period_s)
        if chip != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = read_text(folder / f"in{channel}_label")
            volts, amperes = attribute(folder / f"in{channel}_input"), attribute(folder / f"curr{channel}_input")
            if not label or label == "NC" or volts is None or amperes is None:
                continue
            flags = [(w, attribute(folder / f"curr{channel}_{kind}")) for kind, w in _ALARMS.items()]
            yield Rail(
                label,
                period_s,
                millivolts=volts,
                milliamperes=amperes,
                current_limit_a=_limit(folder / f"curr{channel}_max"),
                alarms=tuple((words, flag) for words, flag in flags if flag is not None),
            )


def _ina238(folder: Path, period_s: float) -> Iterator[Rail]:
    label = next((t for f in by_number(folder, "*label") if (t := read_text(f))), None)
    microwatts = attribute(folder / "power1_input")
    if label and microwatts is not None:
        yield Rail(
            label,
            period_s,
            millivolts=attribute(folder / "in1_input"),
            milliamperes=attribute(folder / "curr1_input"),
            microwatts=microwatts,
        )


def _limit(path: Path) -> float | None:
    first = (read_text(path) or "").partition(" ")[0]  # JetPack 4 writes "5000 ma"
    milliamperes = whole(first)
    return milliamperes / 1000 if milliamperes is not None and 0 < milliamperes < _NO_LIMIT_MA else None


def _scaled(file: Attribute | None, per_unit: float) -> float | None:
    value = None if file is None else file.integer()
    return None if value is None else value / per_unit
