"""One reading of everything that a machine tells about its power, heat and clocks, again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import SensorError
from edgekit.telemetry import machine
from edgekit.telemetry.clocks import ClockReading, CpuLoad, find_cpu_clocks, find_gpu_clocks, read_memory_share
from edgekit.telemetry.gpus import GpuBoard, GpuReading, find_gpus
from edgekit.telemetry.jetson import Board, identify
from edgekit.telemetry.nvml import SHORT
from edgekit.telemetry.power_mode import PowerModes, read_power_modes
from edgekit.telemetry.rails import RailReading, find_rails, total_of
from edgekit.telemetry.rapl import RaplSensor, find_rapl
from edgekit.telemetry.sysfs import Attribute, read_text
from edgekit.telemetry.thermal import ZoneReading, find_zones
from edgekit.telemetry.throttle import FanReading, Throttle, find_fans, find_throttles

ORIGIN_FILE = "edgekit/origin"
"""In a tree that is not a live machine: one sentence on where it comes from ("built, not captured: ...")."""


_MODES_S = 60.0
"""How often the power mode is asked for, which runs a program."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What machine this is. `origin` is the note of a tree that is no live machine, else empty."""

    model: str
    system: str
    board: Board | None
    origin: str


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of one part of the machine, `None` until two readings of a counter; `scope` says what that covers."""

    name: str
    scope: str
    source: str
    power_w: float | None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading. `t_s` is `time.monotonic()`, `unix_s` the wall clock; an empty tuple: the machine has none.

    `powers` are totals by scope, which may contain one another and are never to be added; `rails` are the single
    rails of a Jetson. `problems` has one sentence for each sensor that failed since the monitor started.
    """

    t_s: float
    unix_s: float
    powers: tuple[Power, ...]
    rails: tuple[RailReading, ...]
    zones: tuple[ZoneReading, ...]
    cpu_clocks: tuple[ClockReading, ...]
    gpu_clocks: tuple[ClockReading, ...]
    gpus: tuple[GpuReading, ...]
    cpu_load: float | None
    memory_share: float | None
    fans: tuple[FanReading, ...]
    throttles: tuple[Throttle, ...]
    modes: PowerModes | None
    problems: tuple[str, ...]

    @property
    def throttled(self) -> tuple[str, ...]:
        """Causes that slow the machine down now."""
        own = (t.cause for t in self.throttles if t.active)
        return (*own, *(t.cause for g in self.gpus for t in g.throttles if t.active))

    @property
    def headroom_c(self) -> float | None:
        """Degrees until the first zone reaches a trip point that slows what computes, or stops the machine.

        Drives, batteries and radios have limits of their own, which are not in it.
        """
        values = [z.headroom_c for z in self.zones if z.computes and z.headroom_c is not None]
        trips = [(g.trips[0].temp_c - g.temp_c) for g in self.gpus if g.trips and g.temp_c is not None]
        return min([*values, *trips], default=None)


class Monitor:
    """Reads a machine. Devices are looked for at the start and every `rediscover_s` again.

    So a node that appears late (a Jetson's GPU), or comes back under another number, is found. What fails is reported
    once in `problems` and left out until it is found again. 0 looks before every reading. For one thread at a time.
    """

    def __init__(self, root: Path = Path("/"), *, rediscover_s: float = 10.0) -> None:
        self.root = root
        self.identity = _identity(root)
        self._rediscover_s = rediscover_s
        self._cpu_load = CpuLoad(root)
        self._memory = Attribute(root / "proc/meminfo")
        self._problems: dict[str, str] = {}
        self._last_energy: dict[str, tuple[float, float]] = {}
        board = self.identity.board
        by_nvml = root == Path("/") and (board is None or board.family == "Thor")  # other Jetsons' NVML tells nothing
        self._boards: list[GpuBoard]
        self._boards, gpu_reason = find_gpus() if by_nvml else ([], "")
        rapl = find_rapl(root)
        self._rapl = [s for s in rapl.sensors if isinstance(s, RaplSensor)]
        cpu_reasons = rapl.reasons if board is None else ()  # a Jetson has rails instead
        self.reasons = tuple(r for r in (*cpu_reasons, gpu_reason) if r)
        self._throttles = {s.cause: s for s in find_throttles(root)}
        self._modes: PowerModes | None = None
        self._modes_s = -math.inf
        self._discover()

    def _discover(self) -> None:
        root = self.root
        self._found_s = time.monotonic()
        self._rails = find_rails(root)
        self._total, self._scope = total_of(self._rails)
        self._zones = find_zones(root)
        self._cpu_clocks, self._gpu_clocks = find_cpu_clocks(root), find_gpu_clocks(root)
        self._fans = find_fans(root)
        known = self._throttles
        self._throttles = {s.cause: known.get(s.cause, s) for s in find_throttles(root)}
        if self._found_s - self._modes_s >= _MODES_S or self._rediscover_s == 0:
            self._modes, self._modes_s = read_power_modes(root), self._found_s

    def read(self) -> Snapshot:
        """Everything now. Never fails: what cannot be read is None, with a sentence in `problems`."""
        if time.monotonic() - self._found_s >= self._rediscover_s:
            self._discover()
        t_s = time.monotonic()
        rails = tuple(r.read() for r in self._rails)
        for rail in rails:
            self._note(f"rail {rail.label}", rail.power_w is None, f"Power rail {rail.label} cannot be read any more.")
        gpus = self._read_gpus()
        return Snapshot(
            t_s=t_s,
            unix_s=time.time(),
            powers=(*self._rail_total(rails), *self._read_rapl(), *_gpu_powers(gpus)),
            rails=rails,
            zones=tuple(z.read() for z in self._zones),
            cpu_clocks=tuple(c.read() for c in self._cpu_clocks),
            gpu_clocks=tuple(c.read() for c in self._gpu_clocks),
            gpus=gpus,
            cpu_load=self._cpu_load.read(),
            memory_share=read_memory_share(self._memory),
            fans=tuple(f.read() for f in self._fans),
            throttles=(
                *(s.read(t_s) for s in self._throttles.values()),
                *(Throttle(f"{r.label} {alarm}", True) for r in rails for alarm in r.alarms),
            ),
            modes=self._modes,
            problems=tuple(self._problems.values()),
        )

    def _note(self, key: str, failed: bool, sentence: str) -> None:
        if failed:
            self._problems.setdefault(key, sentence)

    def _rail_total(self, rails: Sequence[RailReading]) -> list[Power]:
        if not rails:
            return []
        labels = {r.label for r in self._total}
        parts = [r.power_w for r in rails if r.label in labels]
        known = [p for p in parts if p is not None]
        total_w = sum(known) if len(known) == len(parts) else None
        return [Power("board", self._scope, "rail", total_w)]

    def _read_rapl(self) -> list[Power]:
        powers = []
        for sensor in tuple(self._rapl):
            try:
                sample = sensor.read()
            except SensorError as error:
                self._note(sensor.name, True, str(error))
                self._rapl.remove(sensor)
                continue
            energy_j = sample.energy_j or 0.0
            last = self._last_energy.get(sensor.name)
            self._last_energy[sensor.name] = (sample.t_s, energy_j)
            known = last is not None and sample.t_s > last[0]
            power_w = (energy_j - last[1]) / (sample.t_s - last[0]) if last is not None and known else None
            powers.append(Power(sensor.name, sensor.scope, "rapl", power_w, energy_j))
        return powers

    def _read_gpus(self) -> tuple[GpuReading, ...]:
        readings = []
        for board in tuple(self._boards):
            try:
                readings.append(board.read())
            except SensorError as error:
                self._note(board.uuid, True, str(error))
                self._boards.remove(board)
        return tuple(readings)


def _gpu_powers(gpus: Sequence[GpuReading]) -> list[Power]:
    short = [g.uuid[:SHORT] for g in gpus]
    several = len(gpus) > 1
    return [
        Power(f"gpu {uuid}", f"GPU board {g.name}" + f" {uuid}" * several, "power", g.power_w, g.energy_j)
        for g, uuid in zip(gpus, short)
    ]


def _identity(root: Path) -> Identity:
    board = identify(root)
    model = board.model if board is not None else read_text(root / "sys/class/dmi/id/product_name")
    name = model or (machine.cpu(root).model if (root / "proc/cpuinfo").exists() else "unknown machine")
    return Identity(name, machine.system(root), board, read_text(root / ORIGIN_FILE) or "")
