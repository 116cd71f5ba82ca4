"""Record this machine's telemetry files over time into one archive, to be replayed on any other machine.

  edgekit board capture -o orin.tar.zst --duration 60
  edgekit monitor --root orin.tar.zst                     plays it

Only files that tell power, temperature, clocks, fans, throttling and the board's kind are read: no serial numbers, no
addresses, no names of users or hosts. Ctrl-C ends the recording and keeps what there is. A name that ends in .tar.gz
needs no further package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgekit.cli.output import bytes_text, note, print_json, print_text, progress
from edgekit.telemetry.capture import capture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit board`."""
    parser.add_argument("action", choices=("capture",), help="record this machine")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.tar.zst", help="the archive to write")
    parser.add_argument("--duration", type=float, default=30.0, metavar="S", help="seconds (default: %(default)g)")
    parser.add_argument(
        "--interval", type=float, default=0.5, metavar="S", help="seconds between readings (default: %(default)g)"
    )
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="record this tree instead of /")
    parser.add_argument("--force", action="store_true", help="replace the archive if it exists")


def run(args: argparse.Namespace) -> int:
    """Record, and say what was recorded."""
    with progress(f"recording {args.root}", max(1, round(args.duration))) as advance:
        shown = 0

        def tick(elapsed_s: float) -> None:
            nonlocal shown
            advance(int(elapsed_s) - shown)
            shown = int(elapsed_s)

        done = capture(
            args.output,
            root=args.root,
            duration_s=args.duration,
            interval_s=args.interval,
            force=args.force,
            tick=tick,
        )
    if args.json:
        print_json(
            {
                "path": str(done.path),
                "origin": done.origin,
                "files": done.files,
                "frames": done.frames,
                "duration_s": done.duration_s,
                "bytes": done.bytes,
            }
        )
    else:
        print_text(f"{done.path}: {done.origin}")
        print_text(f"{done.files} files, {done.frames} readings over {done.duration_s:.1f} s, {bytes_text(done.bytes)}")
        note(f"See it again with: edgekit monitor --root {done.path}")
    return 0
