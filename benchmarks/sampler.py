"""What watching a machine costs: CPU time of the sampler at 10 Hz, its memory, and the latency of work beside it.

    python benchmarks/sampler.py [--seconds 10] [--root TREE]... [--json OUT.json]

Each row is one machine: this one, and each TREE (a folder or a capture). CPU time is that of the whole process while
its main thread sleeps, minus that of a process that sleeps alone. A tree's files are plain ones: on a board, reading a
power monitor also waits for its bus, which takes time but no CPU. `--seconds 600` is a soak: memory must stay where it
is.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from edgekit.telemetry import find_sensors
from edgekit.telemetry.measure import measure_energy
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.replay import opened_root
from edgekit.telemetry.sampler import Sampler

RATE_HZ = 10.0


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def slept(seconds: float) -> float:
    before = cpu_s()
    time.sleep(seconds)
    return cpu_s() - before


def latencies_ms(seconds: float) -> list[float]:
    a = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    out = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ a
        out.append((time.perf_counter() - start) * 1e3)
    return out


def row(root: Path, seconds: float) -> dict[str, float]:
    with opened_root(root) as (folder, _):
        monitor = Monitor(folder)
        values = len(list(monitor.read().zones)) + len(monitor.read().rails)
        with Sampler(monitor.read, interval_s=1 / RATE_HZ, keep=10) as sampler:
            time.sleep(2.0)  # the history is full
            memory_kb = resident_kb()
            used = slept(seconds)
            grown_kb = resident_kb() - memory_kb
            beside = latencies_ms(min(3.0, seconds))
        alone = latencies_ms(min(3.0, seconds))
        assert sampler.failure is None
        with measure_energy(sensors=find_sensors(folder)) as meter:
            metered = slept(min(5.0, seconds))
    idle = slept(min(2.0, seconds)) / min(2.0, seconds)
    return {
        "rails_and_zones": values,
        "core_percent": 100 * (used / seconds - idle),
        "meter_core_percent": 100 * (metered / min(5.0, seconds) - idle),
        "sensors": len(meter.results),
        "memory_growth_kb": grown_kb,
        "p50_ms_beside": statistics.median(beside),
        "p50_ms_alone": statistics.median(alone),
        "p99_ms_beside": float(np.percentile(beside, 99)),
        "p99_ms_alone": float(np.percentile(alone, 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--root", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for root in [Path("/"), *args.root]:
        rows[root.name or "this machine"] = one = row(root, args.seconds)
        print(
            f"{root.name or 'this machine':<14} {one['core_percent']:6.2f} % of a core at {RATE_HZ:.0f} Hz, meter "
            f"{one['meter_core_percent']:.2f} %; memory {one['memory_growth_kb']:+.0f} kB in {args.seconds:.0f} s; "
            f"work beside it p50 {one['p50_ms_beside']:.3f} ms (alone {one['p50_ms_alone']:.3f}), "
            f"p99 {one['p99_ms_beside']:.3f} ({one['p99_ms_alone']:.3f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"seconds": args.seconds, "rate_hz": RATE_HZ, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
