"""What a Ray cluster costs: files a second of `edgekit batch` in one process and by workers of Ray on the same machine.

    python -m benchmarks.batch X.edge PICTURES --workers 1 --repeats 3

Both take turns, so that whatever else the machine does falls on both. The rate is that of the steady state, from the
first part that was kept to the last: starting Ray and its workers (printed apart) takes the same however many
files there are. One process uses all cores, and so does one worker; of N workers each has its share of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from edgekit.batch.cluster import ClusterEngine, Options
from edgekit.batch.columns import Layout
from edgekit.batch.job import Engine, Hears, LocalEngine, run_batch
from edgekit.batch.pipeline import Pipeline, batch_size
from edgekit.cluster import connected
from edgekit.package import Package
from edgekit.runtime.select import open_session

KEEP_S = 0.5


def steady(package: Package, folder: Path, engine: Engine) -> tuple[float, float]:
    """Files a second between the first part and the last, and seconds until the first."""
    kept: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as where:
        began = time.perf_counter()
        hears = Hears(kept=lambda files: kept.append((time.perf_counter(), files)))
        run_batch(package, folder, Path(where) / "out.csv", engine=engine, hears=hears)
    first, last = kept[0][0], kept[-1][0]
    if last <= first:
        raise SystemExit(f"{sum(files for _, files in kept)} files are one part: give more of them.")
    return sum(files for _, files in kept[1:]) / (last - first), first - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, help="rows in one call, for both (default: measured once)")
    args = parser.parse_args()
    package = Package.open(args.package)
    layout = Layout(package, top=3)
    rates: dict[str, list[float]] = {"process": [], "ray": []}
    starts: list[float] = []
    with connected("local") as ray, open_session(package) as session:
        batch = batch_size(package, session, wanted=args.batch)
        options = Options("out.csv", top=3, tensors=False, variant=None, batch=batch, threads=None, readers=None)
        for i in range(args.repeats):
            pipeline = Pipeline(package, session, layout, batch=batch)
            rates["process"].append(steady(package, args.folder, LocalEngine(pipeline, "", keep_s=KEEP_S))[0])
            rate, start_s = steady(package, args.folder, ClusterEngine(ray, package, options, workers=args.workers))
            rates["ray"].append(rate)
            starts.append(start_s)
            print(
                f"{i + 1}: one process {rates['process'][-1]:.0f} files/s, Ray {rate:.0f}, first part {start_s:.1f} s"
            )
    ratios = [b / a for a, b in zip(rates["process"], rates["ray"])]
    found = {
        "package": package.name,
        "batch": batch,
        "workers": args.workers,
        "files_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "first_part_s": statistics.median(starts),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
