"""Live power, temperature, clocks and throttling of this machine, or of a recorded one.

  edgekit monitor                                  a live view; Ctrl-C ends it
  edgekit monitor --once --json                    one reading as one JSON document
  edgekit monitor --csv run.csv --interval 0.1     the view, and every reading in a file
  edgekit monitor --root orin.tar.zst              plays what `edgekit board capture` recorded

Where stdout is no terminal, each reading is printed below the one before; with --json, one JSON document a line. Files
hold one value a row (unix_s, t_s, part, name, quantity, unit, value), so that devices may come and go.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live

from edgekit.cli.monitor_view import render
from edgekit.cli.output import PIPE_WIDTH, note, print_json
from edgekit.errors import UsageError
from edgekit.telemetry.monitor import Monitor, Snapshot
from edgekit.telemetry.record import CsvWriter, ParquetWriter, Writer, check_output, open_csv
from edgekit.telemetry.replay import Replay, opened_root

FIRST_S = 0.2
"""Before the first reading: watts of counters and CPU load are differences of two."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit monitor`."""
    parser.add_argument("--once", action="store_true", help="one reading, then end")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between readings (default: %(default)g)"
    )
    parser.add_argument("--duration", type=float, metavar="S", help="end after this many seconds")
    parser.add_argument("--csv", metavar="FILE", help="write every reading as CSV; - is stdout, without the view")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write every reading as Parquet (needs pyarrow)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="TREE", help="a folder with /sys and /proc, or a capture"
    )


def run(args: argparse.Namespace) -> int:
    """Read and show until told to stop."""
    if not args.interval > 0 or (args.duration is not None and not args.duration > 0):
        raise UsageError("--interval and --duration must be positive.")
    if args.csv == "-" and args.json:
        raise UsageError("--csv - and --json both print to stdout. Choose one, or give --csv a file.")
    with ExitStack() as stack:
        root, replay = stack.enter_context(opened_root(args.root))
        writers = [stack.enter_context(w) for w in _writers(args)]
        monitor = Monitor(root, rediscover_s=10.0 if replay is None else 0.0)
        if args.csv == "-":
            show: Callable[[Snapshot], None] = lambda now: None  # noqa: E731 - the rows are what is shown
        else:
            show = _shower(args, monitor, stack)
        try:
            _loop(args, monitor, replay, writers, show)
        except KeyboardInterrupt:
            if args.once:
                raise
            return 0  # Ctrl-C is how it is meant to end
    return 0


def _loop(
    args: argparse.Namespace,
    monitor: Monitor,
    replay: Replay | None,
    writers: list[Writer],
    show: Callable[[Snapshot], None],
) -> None:
    if replay is not None:
        replay.advance(0.0)
    monitor.read()
    start_s = time.monotonic()
    due_s = start_s + (FIRST_S if replay is None else 0.0)
    while True:
        time.sleep(max(0.0, due_s - time.monotonic()))
        goes_on = replay is None or replay.advance(time.monotonic() - start_s)
        now = monitor.read()
        for writer in writers:
            writer.write(now)
        show(now)
        over = args.duration is not None and time.monotonic() + args.interval > start_s + args.duration
        if args.once or over or not goes_on:
            return
        due_s = max(due_s + args.interval, time.monotonic())


def _writers(args: argparse.Namespace) -> list[Any]:
    """What takes the readings. No file is begun before all of them can be."""
    parquet = []
    if args.parquet:
        check_output(args.parquet, force=args.force)
        parquet = [ParquetWriter(args.parquet)]
    if args.csv == "-":
        return [CsvWriter(sys.stdout, close=False), *parquet]
    return [open_csv(Path(args.csv), force=args.force), *parquet] if args.csv else parquet


def _shower(args: argparse.Namespace, monitor: Monitor, stack: ExitStack) -> Callable[[Snapshot], None]:
    if args.json:
        return lambda now: _print_document(_document(monitor, now), once=args.once)
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PIPE_WIDTH)
    ascii_only = not (console.encoding or "").lower().startswith("utf")

    def picture(now: Snapshot) -> Any:
        return render(monitor.identity, now, notes=monitor.reasons, ascii_only=ascii_only)

    if args.once or not terminal:
        return lambda now: console.print(picture(now), "")
    live = stack.enter_context(Live(console=console, screen=False, auto_refresh=False, vertical_overflow="ellipsis"))
    note("Ctrl-C ends.")
    return lambda now: live.update(picture(now), refresh=True)


def _document(monitor: Monitor, now: Snapshot) -> dict[str, Any]:
    """One reading with what machine it is of, and what was derived of it."""
    return {
        "identity": monitor.identity,
        "throttled": now.throttled,
        "headroom_c": now.headroom_c,
        **{name: getattr(now, name) for name in Snapshot.__dataclass_fields__},
        "reasons": monitor.reasons,
    }


def _print_document(document: dict[str, Any], *, once: bool) -> None:
    if once:
        print_json(document)
        return
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()
