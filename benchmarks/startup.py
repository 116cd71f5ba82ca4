"""CPU time of what users wait for before any work is done: `import edgekit`, `edgekit --help`, and one export.

    python benchmarks/startup.py [--runs 15] [--json OUT.json]

Each row is the median of several fresh processes (user + system time, so that other load on the machine counts little),
with a bare interpreter beside it; export is wall time as well, since that is what its user sees.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def timed(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def measure(command: list[str], runs: int) -> dict[str, float]:
    timed(command)  # fills the file cache
    results = [timed(command) for _ in range(runs)]
    return {
        "cpu_s": statistics.median(cpu for cpu, _ in results),
        "wall_s": statistics.median(wall for _, wall in results),
        "worst_cpu_s": max(cpu for cpu, _ in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        export = [python, "-m", "edgekit", "export", "models/digits_cnn.py", "-o", f"{folder}/x.edge", "--force"]
        rows = {
            "python -c pass": measure([python, "-c", "pass"], args.runs),
            "import edgekit": measure([python, "-c", "import edgekit"], args.runs),
            "edgekit --help": measure([str(Path(python).parent / "edgekit"), "--help"], args.runs),
            "edgekit export models/digits_cnn.py": measure(export, max(1, args.runs // 5)),
        }
    for name, row in rows.items():
        print(f"{name:<38} cpu {row['cpu_s']:.3f} s (worst {row['worst_cpu_s']:.3f})   wall {row['wall_s']:.3f} s")
    if args.json:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.system()}
        args.json.write_text(json.dumps({"machine": machine, "runs": args.runs, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
