"""How commands speak: results to stdout as a table or one JSON document, progress to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or pipe, so that nothing is cut there."""


class Advance(Protocol):
    """Moves a progress bar on by `steps`."""

    def __call__(self, steps: int = 1) -> None:
        """Move on."""
        ...


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=False, width=None if stream.isatty() else PIPE_WIDTH)


def print_json(document: Any) -> None:
    """One JSON document to stdout. Structs, dataclasses and numpy-free containers are encoded as they are."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    sys.stdout.write(text + "\n")


def print_text(text: str) -> None:
    """A line to stdout."""
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table to stdout. Columns whose name ends with '>' are right-aligned (the mark is not printed)."""
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for name in columns:
        right = name.endswith(">")
        table.add_column(name.rstrip(">"), justify="right" if right else "left", overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(v)) for v in row))
    _console().print(table)


def note(text: str) -> None:
    """A line of progress to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar on stderr, shown on a terminal only."""
    console = _console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(description, total=total)

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield advance


class ByteProgress:
    """Moves a bar of bytes on: by a count (a call), or to a state (`to`)."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, count: int) -> None:
        """So many more bytes are done."""
        self._bar.advance(self._task, count)

    def to(self, done: int, total: int) -> None:
        """`done` bytes of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)


@contextmanager
def progress_bytes(description: str, total: int | None) -> Iterator[ByteProgress]:
    """A progress bar of bytes with their rate on stderr, shown on a terminal only."""
    console = _console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield ByteProgress(bar, bar.add_task(description, total=total))


class RateProgress:
    """Moves a bar on and shows how fast it goes; where there is no terminal, a line every `LINE_S` seconds."""

    LINE_S = 30.0

    def __init__(self, bar: Progress, task: TaskID, unit: str) -> None:
        self._bar, self._task, self._unit = bar, task, unit
        self._done = self._before = self._total = 0
        self._began = self._said = time.monotonic()

    def begin(self, done: int, total: int) -> None:
        """`done` of `total` were done before; the rate counts from here."""
        self._done, self._before, self._total = done, done, total
        self._began = self._said = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done, rate="")

    def __call__(self, steps: int) -> None:
        """So many more are done."""
        self._done += steps
        now = time.monotonic()
        rate = f"{(self._done - self._before) / max(now - self._began, 1e-9):.0f} {self._unit}/s"
        self._bar.update(self._task, advance=steps, rate=rate)
        if self._bar.disable and now - self._said >= self.LINE_S:
            self._said = now
            note(f"{self._done} of {self._total} {self._unit}, {rate}")


@contextmanager
def progress_rate(description: str, unit: str) -> Iterator[RateProgress]:
    """A progress bar of `unit` ("files") with their rate on stderr: on a terminal a bar, else a line now and then."""
    console = _console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield RateProgress(bar, bar.add_task(description, total=None, rate=""), unit)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def bytes_text(count: int) -> str:
    """A size as users read it: 512 B, 23.4 kB, 1.2 MB (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def percent_text(share: float | None) -> str:
    """A share (0 to 1) in percent, or '-'."""
    return "-" if share is None else f"{100 * share:.2f} %"
