"""Measure what an inference costs, then look for the setting that costs least.

python main.py digits_cnn.edge [--seconds 5] [options of edgekit tune, such as --max-p99 20ms --variant int8]

Where no sensor covers what runs the model there are no joules, and the script says why and tunes for latency instead.
"""

import argparse
import subprocess
import sys
import time

import edgekit
from edgekit.telemetry import find_sensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--seconds", type=float, default=5)
    args, options = parser.parse_known_args()

    package = edgekit.Package.open(args.package)
    sample = {name: array[:1] for name, array in package.samples().inputs.items()}
    with edgekit.open_session(package) as session:
        session.run(sample)  # warm
        count, deadline = 0, time.monotonic() + args.seconds
        with edgekit.measure_energy() as meter:
            while time.monotonic() < deadline:
                session.run(sample)
                count += 1
        print(f"{count} inferences of '{session.variant}' in {args.seconds:g} s")
    print(meter)  # a line a sensor, or why there is no figure
    for energy in meter.energies:
        print(f"{1e3 * energy.energy_j / count:.3g} mJ an inference ({energy.scope}, idle power in it)")

    objective = "energy" if find_sensors().sensors else "latency"
    print(f"tuning for {objective}")
    command = [sys.executable, "-m", "edgekit", "tune", args.package, "--objective", objective, *options]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    raise SystemExit(main())
