"""What slows the machine down: throttle alerts, over-current events, the CPU's own thermal counters; and fans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.telemetry.sysfs import Attribute, attribute, by_number, read_int, read_text

_OVER_CURRENT = {1: "under-voltage (OC1)", 2: "average over-current (OC2)", 3: "instantaneous over-current (OC3)"}
_CPU_COUNTERS = (
    ("core_throttle_count", "CPU core thermal limit"),
    ("package_throttle_count", "CPU package thermal limit"),
)


@dataclass(frozen=True, slots=True)
class Throttle:
    """One cause for which this machine is, or can be, slowed down.

    `active`: it is now. `events` counts since boot where the cause has a counter, `rate_hz` how fast that grows;
    a counter is active while it grows, whatever its value.
    """

    cause: str
    active: bool
    events: int | None = None
    rate_hz: float | None = None


@dataclass(slots=True)
class AlertSource:
    """A cooling device that is on while the machine is slowed down."""

    cause: str
    state: Attribute

    def read(self, t_s: float) -> Throttle:
        """Whether it is on."""
        value = self.state.integer()
        return Throttle(self.cause, value is not None and value > 0)


@dataclass(slots=True)
class CounterSource:
    """Counters of events of one cause, added up; the alarm is on their growth, not on their value."""

    cause: str
    counters: tuple[Attribute, ...]
    _last: tuple[float, int] | None = None

    def read(self, t_s: float) -> Throttle:
        """The count and its growth since the reading before; no growth at the first."""
        values = [v for v in (c.integer() for c in self.counters) if v is not None]
        if not values:
            self._last = None
            return Throttle(self.cause, False)
        events = sum(values)
        last, self._last = self._last, (t_s, events)
        if last is None or t_s <= last[0] or events < last[1]:
            return Throttle(self.cause, False, events)
        rate_hz = (events - last[1]) / (t_s - last[0])
        return Throttle(self.cause, rate_hz > 0, events, rate_hz)


def find_throttles(root: Path = Path("/")) -> list[AlertSource | CounterSource]:
    """Every cause that the machine at `root` can name. Fans and idle states are no throttling and are left out."""
    found: list[AlertSource | CounterSource] = []
    for folder in by_number(root / "sys/class/thermal", "cooling_device*"):
        kind = read_text(folder / "type") or ""
        if kind.endswith("-throttle-alert") or kind == "hot-surface-alert":
            found.append(AlertSource(kind, Attribute(folder / "cur_state")))
    for folder in by_number(root / "sys/class/hwmon", "hwmon*"):
        if read_text(folder / "name") != "soctherm_oc":
            continue
        for number, cause in _OVER_CURRENT.items():
            counter = attribute(folder / f"oc{number}_event_cnt")
            if counter is not None and read_int(folder / f"oc{number}_throt_en") != 0:
                found.append(CounterSource(cause, (counter,)))
    for name, cause in _CPU_COUNTERS:
        # every logical CPU shows its package's counter: one of them is enough
        files = by_number(root / "sys/devices/system/cpu", f"cpu[0-9]*/thermal_throttle/{name}")
        files = files[:1] if name.startswith("package") else files
        if files:
            found.append(CounterSource(cause, tuple(Attribute(f) for f in files)))
    return found


@dataclass(frozen=True, slots=True)
class FanReading:
    """One fan: its drive as a share (0 to 1) and its speed in turns a minute, where known."""

    name: str
    duty: float | None
    rpm: int | None


@dataclass(frozen=True, slots=True)
class Fan:
    """One fan: a PWM output (0 to 255), a tachometer, or both."""

    name: str
    pwm: Attribute | None
    rpm: Attribute | None

    def read(self) -> FanReading:
        """The fan now."""
        pwm = self.pwm.integer() if self.pwm else None
        rpm = self.rpm.integer() if self.rpm else None
        duty = pwm / 255 if pwm is not None and 0 <= pwm <= 255 else None
        return FanReading(self.name, duty, rpm if rpm is not None and 0 <= rpm < 1_000_000 else None)


def find_fans(root: Path = Path("/")) -> list[Fan]:
    """Fans of a Jetson (pwmfan, pwm_tach; JetPack 4's pwm-fan) and of any other machine (hwmon fanN_input)."""
    folders = {folder: read_text(folder / "name") for folder in by_number(root / "sys/class/hwmon", "hwmon*")}
    tachometers = [attribute(f / "rpm") for f, name in folders.items() if name == "pwm_tach"]
    drives = [attribute(f / "pwm1") for f, name in folders.items() if name == "pwmfan"]
    drives += [attribute(root / "sys/devices/pwm-fan/cur_pwm")]
    fans = []
    pairs = [d for d in drives if d is not None], [t for t in tachometers if t is not None]
    for number in range(max(map(len, pairs))):
        drive, tachometer = (p[number] if number < len(p) else None for p in pairs)
        fans.append(Fan("fan" if number == 0 else f"fan {number + 1}", drive, tachometer))
    for folder, chip in folders.items():
        for file in by_number(folder, "fan*_input"):
            number_text = file.name.removeprefix("fan").removesuffix("_input")
            label = read_text(folder / f"fan{number_text}_label") or f"{chip} fan{number_text}"
            fans.append(Fan(label, attribute(folder / f"pwm{number_text}"), Attribute(file)))
    return fans
