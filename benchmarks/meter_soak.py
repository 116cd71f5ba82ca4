"""Sampler and energy meter for as long as asked: memory must stay where it is, and the joules must be right.

    python benchmarks/meter_soak.py [--minutes 10] [--root CAPTURE]... [--json OUT.json]

In one process, all at once: this machine, an AGX Orin that is played over and over (a tree made from the documented
layout whose currents rise and fall, captured for 20 s), and each CAPTURE of `edgekit board capture`. Each is read
whole ten times a second by a sampler, and its energy sensors are integrated by a meter over the whole time. Flat
memory: after the first tenth the process grows by less than 0.5 MB, and the objects that Python counts do not grow in
number. What a capture's rail gave in truth is summed up as it is played; the meter must say so within its uncertainty.
Exits 1 if any of it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import resource
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.telemetry.capture import capture
from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.measure import measure_energy
from edgekit.telemetry.monitor import Monitor, Snapshot
from edgekit.telemetry.rails import find_rails, total_of
from edgekit.telemetry.replay import Replay
from edgekit.telemetry.sampler import Sampler
from tests.telemetry import boards

RATE_HZ = 10.0
RENEWED_S = 0.08
CAPTURED_S = 20.0
KEPT = 100
MOST_KB = 512
MOST_OBJECTS = 500


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def captured_board(folder: Path) -> Path:
    """A capture of an AGX Orin whose currents rise and fall with several rhythms."""
    root = boards.agx_orin(folder / "agx_orin")
    files = {f: int(f.read_text()) for f in root.glob("sys/class/hwmon/hwmon*/curr[1-3]_input")}
    over = threading.Event()

    def move() -> None:
        while not over.wait(RENEWED_S):
            now_s = time.monotonic()
            for number, (file, milliamperes) in enumerate(files.items()):
                share = 1.5 + math.sin(now_s * (1 + number) / 3)
                partial = file.with_name(f".{file.name}")
                partial.write_text(f"{round(milliamperes * share)}\n")
                partial.replace(file)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        made = capture(folder / "agx_orin.tar.gz", root=root, duration_s=CAPTURED_S, interval_s=RENEWED_S)
    finally:
        over.set()
        thread.join()
    return made.path


class Player(threading.Thread):
    """Plays a capture over and over, and adds up what its rails gave: `joules` since `begin()`."""

    def __init__(self, replay: Replay, minutes: float) -> None:
        super().__init__(name=f"player of {replay.path.name}", daemon=True)
        length_s = replay.duration_s + RENEWED_S
        laps = math.ceil((minutes + 1) * 60 / length_s)
        replay.frames = tuple(
            replace(f, t_s=lap * length_s + f.t_s) for lap, f in itertools.product(range(laps), replay.frames)
        )
        self._replay, self._rails = replay, total_of(find_rails(replay.root))[0]
        self._over, self._lock = threading.Event(), threading.Lock()
        self.joules, self._watts, self._since = 0.0, 0.0, time.monotonic()

    def run(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(RENEWED_S / 4):
            self._replay.advance(time.monotonic() - begun)
            self.settle()

    def settle(self) -> float:
        """The joules until now."""
        with self._lock:
            now = time.monotonic()
            self.joules += self._watts * (now - self._since)
            self._since, self._watts = now, sum(rail.read_w() for rail in self._rails)
            return self.joules

    def stop(self) -> None:
        self._over.set()
        self.join()


@dataclass(frozen=True)
class Played:
    """What the meter said of a capture's rail, and what was played."""

    capture: str
    energy_j: float
    uncertainty_j: float
    spent_j: float


@dataclass(frozen=True)
class Result:
    """What memory did (growth is from the first to the last third, once settled), and what the meters say."""

    minutes: float
    rate_hz: float
    machines: tuple[str, ...]
    core_percent: float
    resident_kb: tuple[int, ...]
    resident_growth_kb: float
    object_growth: float
    failures: tuple[str, ...]
    this_machine: tuple[str, ...]
    played: tuple[Played, ...]

    def faults(self) -> list[str]:
        """What was asked for and is not so."""
        out = list(self.failures)
        if self.resident_growth_kb >= MOST_KB:
            out.append(f"memory grew by {self.resident_growth_kb:.0f} kB")
        if self.object_growth >= MOST_OBJECTS:
            out.append(f"Python counts {self.object_growth:.0f} more objects")
        for one in self.played:
            if abs(one.energy_j - one.spent_j) > one.uncertainty_j:
                out.append(f"{one.capture}: {one.energy_j:.1f} J by the meter, {one.spent_j:.1f} J in truth")
        return out


def soak(minutes: float, captures: list[Path]) -> Result:
    """Everything at once."""
    with contextlib.ExitStack() as stack:
        replays = [stack.enter_context(Replay(path)) for path in captures]
        players = [Player(replay, minutes) for replay in replays]
        roots = [Path("/"), *(replay.root for replay in replays)]
        for player in players:
            player.start()
            stack.callback(player.stop)
        samplers: list[Sampler[Snapshot]] = [
            stack.enter_context(Sampler(Monitor(root).read, interval_s=1 / RATE_HZ, keep=KEPT)) for root in roots
        ]
        with contextlib.ExitStack() as measured:
            meters = [measured.enter_context(measure_energy(sensors=find_sensors(root))) for root in roots]
            before_j = [p.settle() for p in players]
            begun, before_s = time.monotonic(), cpu_s()
            course: list[tuple[int, int]] = []
            while time.monotonic() - begun < minutes * 60:
                time.sleep(min(5.0, minutes * 6))
                gc.collect()
                course.append((resident_kb(), len(gc.get_objects())))
            used_s = cpu_s() - before_s
            spent_j = [p.settle() - j for p, j in zip(players, before_j)]
        failures = tuple(s.failure for s in samplers if s.failure is not None)
    settled = course[len(course) // 10 :]
    third = max(1, len(settled) // 3)
    growth = [
        statistics.median(c[k] for c in settled[-third:]) - statistics.median(c[k] for c in settled[:third])
        for k in (0, 1)
    ]
    return Result(
        minutes=minutes,
        rate_hz=RATE_HZ,
        machines=("this machine", *(p.name for p in captures)),
        core_percent=100 * used_s / (minutes * 60),
        resident_kb=tuple(c[0] for c in course),
        resident_growth_kb=growth[0],
        object_growth=growth[1],
        failures=failures,
        this_machine=tuple(str(meters[0]).splitlines()),
        played=tuple(
            Played(path.name, e.energy_j, e.uncertainty_j, truth)
            for path, meter, truth in zip(captures, meters[1:], spent_j)
            for e in meter.energies
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--root", type=Path, action="append", default=[], metavar="CAPTURE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(args.minutes, [captured_board(Path(folder)), *args.root])
    print(
        f"{args.minutes:g} min, {len(result.machines)} machines at {RATE_HZ:.0f} Hz: {result.core_percent:.2f} % of a "
        f"core in all; resident {result.resident_kb[0]} kB at first, {result.resident_kb[-1]} kB at the end, "
        f"{result.resident_growth_kb:+.0f} kB and {result.object_growth:+.0f} objects from the first to the last third"
    )
    for one in result.played:
        print(
            f"{one.capture}: {one.energy_j:.1f} ± {one.uncertainty_j:.1f} J by the meter, {one.spent_j:.1f} J in truth"
        )
    for text in result.this_machine:
        print(f"this machine: {text}")
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    faults = result.faults()
    for text in faults:
        print(f"FAULT: {text}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
