"""Clocks and load of the processor and of a Jetson's GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.telemetry.sysfs import Attribute, attribute, by_number, read_text

_GPU_NODE = re.compile(r"[0-9a-f]+\.(gpu|gp10b|gv11b|ga10b)|gpu-.*")
"""Devfreq nodes of Jetson GPUs: 57000000.gpu (Nano), 17000000.ga10b (Orin), gpu-gpc-0 (Thor), …"""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One clock domain in hertz. `load` is a share (0 to 1). `pinned`: lowest and highest allowed are the same."""

    name: str
    now_hz: float | None
    min_hz: float | None
    max_hz: float | None
    load: float | None = None
    governor: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the clock cannot move (jetson_clocks, or a fixed governor)."""
        return self.min_hz is not None and self.min_hz == self.max_hz


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock domain's files; `unit_hz` is what one step of them is worth."""

    name: str
    unit_hz: float
    now: Attribute
    lowest: Attribute | None
    highest: Attribute | None
    load: Attribute | None
    governor: Attribute | None

    def read(self) -> ClockReading:
        """The clock now; values that cannot be read are None."""
        permille = self.load.integer() if self.load else None
        return ClockReading(
            self.name,
            self._hz(self.now),
            self._hz(self.lowest),
            self._hz(self.highest),
            permille / 1000 if permille is not None and 0 <= permille <= 1000 else None,
            (self.governor.text() or None) if self.governor else None,
        )

    def _hz(self, file: Attribute | None) -> float | None:
        value = None if file is None else file.integer()
        return value * self.unit_hz if value is not None and 0 <= value * self.unit_hz < 1e12 else None


def find_cpu_clocks(root: Path = Path("/")) -> list[Clock]:
    """One clock a cpufreq policy: CPUs that change speed together."""
    clocks = []
    for folder in by_number(root / "sys/devices/system/cpu/cpufreq", "policy*"):
        now = attribute(folder / "scaling_cur_freq")
        if now is None:
            continue
        cpus = read_text(folder / "affected_cpus") or folder.name.removeprefix("policy")
        lowest, highest = attribute(folder / "scaling_min_freq"), attribute(folder / "scaling_max_freq")
        governor = attribute(folder / "scaling_governor")
        clocks.append(Clock(f"cpu {_span(cpus)}", 1000.0, now, lowest, highest, None, governor))
    return clocks


def find_gpu_clocks(root: Path = Path("/")) -> list[Clock]:
    """The GPU's clocks through devfreq. The node may appear some time after the system has started."""
    clocks = []
    for folder in by_number(root / "sys/class/devfreq", "*"):
        now = attribute(folder / "cur_freq")
        if now is None or not _GPU_NODE.fullmatch(folder.name):
            continue
        lowest, highest = attribute(folder / "min_freq"), attribute(folder / "max_freq")
        load, governor = attribute(folder / "device/load"), attribute(folder / "governor")
        clocks.append(Clock(folder.name, 1.0, now, lowest, highest, load, governor))
    return clocks


class CpuLoad:
    """How busy all CPUs together are, from /proc/stat."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = Attribute(root / "proc/stat")
        self._last: tuple[int, int] | None = None

    def read(self) -> float | None:
        """Share of time (0 to 1) not idle since the reading before; None at the first."""
        first = (self._file.text() or "").partition("\n")[0].split()
        if len(first) < 6 or first[0] != "cpu" or not all(t.isdecimal() and len(t) < 20 for t in first[1:]):
            return None
        ticks = [int(t) for t in first[1:9]]  # guest time (9, 10) lies in user time
        total, idle = sum(ticks), ticks[3] + ticks[4]
        last, self._last = self._last, (total, idle)
        if last is None or total <= last[0]:
            return None
        return min(1.0, max(0.0, 1 - (idle - last[1]) / (total - last[0])))


def read_memory_share(file: Attribute) -> float | None:
    """Share of memory (0 to 1) in use, from the open /proc/meminfo."""
    text = file.text() or ""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d{1,18}) kB", text, re.MULTILINE))
    if len(sizes) < 2 or int(sizes["MemTotal"]) == 0:
        return None
    return min(1.0, max(0.0, 1 - int(sizes["MemAvailable"]) / int(sizes["MemTotal"])))


def _span(cpus: str) -> str:
    """ "0 1 2 3" as "0-3"."""
    numbers = sorted(int(c) for c in re.findall(r"\d{1,5}", cpus))
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers)) or cpus
