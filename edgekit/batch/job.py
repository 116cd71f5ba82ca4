"""A whole run of `edgekit batch`: plan, parts, and the table that they become."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgekit._files import storage
from edgekit.batch.columns import Layout
from edgekit.batch.formats import Format, format_for
from edgekit.batch.pipeline import Done, Input, Pipeline
from edgekit.batch.plan import JOINED, Changes, Settings, Work, open_work, scan, text_of
from edgekit.errors import UsageError
from edgekit.inputs import ARRAY_SUFFIXES
from edgekit.package import Package

PART_FILES = 4096
PART_S = 5.0
PART_BYTES = 64 << 20
"""A part is kept after so many files, seconds or bytes of results: what a kill can cost."""


@dataclass(frozen=True)
class PartData:
    """A finished stretch of inputs as it is kept, `start` to `stop` of the plan; `files` of them were there."""

    start: int
    stop: int
    files: int
    rows: int
    failed: int
    data: bytes


@dataclass(frozen=True)
class Stretch:
    """Inputs to do, `start` to `stop` of the plan, with the place and name of each."""

    start: int
    stop: int
    names: Sequence[tuple[int, str]]


class Engine(Protocol):
    """What runs files: this process, or a cluster."""

    @property
    def variant(self) -> str:
        """The variant that runs, or "" where every node chooses its own."""
        ...

    def run(
        self, folder: Path, stretches: Sequence[Stretch], table: Format, tick: Callable[[int], None]
    ) -> Generator[PartData, None, None]:
        """Every input of `stretches`, in parts, in any order. `tick` hears of files as they are done."""
        ...


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. `seconds` and `files_per_s` are of this run; `before` files were done by interrupted ones.

    `changed`, `added`, `removed` name inputs that differ from what an interrupted run saw, `changed_since_read` those
    that changed after this run had planned them.
    """

    output: str
    files: int
    rows: int
    failed: int
    before: int
    seconds: float
    files_per_s: float | None
    changed: list[str]
    added: list[str]
    removed: list[str]
    changed_since_read: list[str]


def parts_of(
    pipeline: Pipeline,
    folder: Path,
    stretch: Stretch,
    table: Format,
    tick: Callable[[int], None] = lambda _files: None,
    *,
    keep_s: float = PART_S,
) -> Generator[PartData, None, None]:
    """The parts of one stretch. Interrupted, it gives what it has before it passes the interruption on."""
    open_part = _OpenPart(stretch, 0, table)
    try:
        with closing(pipeline.run(Input(text_of(name), folder / name) for _, name in stretch.names)) as running:
            for done in running:
                open_part.finished.append(done)
                tick(done.files)
                if open_part.full(done, keep_s) and not pipeline.failing:
                    yield open_part.close()
                    open_part = _OpenPart(stretch, open_part.end, table)
    except KeyboardInterrupt:
        if open_part.finished and not pipeline.failing:
            yield open_part.close()
        raise
    rest = open_part.close(last=True)
    if rest.start < rest.stop:
        yield rest


class _OpenPart:
    """What was done since the last part: one list, so that an interruption at any time finds it whole."""

    def __init__(self, stretch: Stretch, first: int, table: Format) -> None:
        self._stretch, self._first, self._table = stretch, first, table
        self._began = time.monotonic()
        self._files = self._bytes = 0
        self.finished: list[Done] = []

    @property
    def end(self) -> int:
        """How many inputs of the stretch are done."""
        return self._first + sum(d.files for d in self.finished)

    def full(self, latest: Done, keep_s: float) -> bool:
        """Whether it should be kept, now that the `latest` is in."""
        self._files += latest.files
        self._bytes += sum(r.nbytes for r in latest.rows)
        late = time.monotonic() - self._began >= keep_s
        return late or self._files >= PART_FILES or self._bytes >= PART_BYTES

    def close(self, *, last: bool = False) -> PartData:
        """The part; the `last` one ends with its stretch, whose places at the end may be empty."""
        names, end = self._stretch.names, self.end
        start = names[self._first - 1][0] + 1 if self._first else self._stretch.start
        stop = self._stretch.stop if last else names[end - 1][0] + 1
        rows = [r for d in self.finished for r in d.rows]
        count, failed = sum(len(r.names) for r in rows), sum(d.failed for d in self.finished)
        return PartData(start, stop, end - self._first, count, failed, self._table.part(rows))


class LocalEngine:
    """Runs files in this process, by an open session; keeps what is done every `keep_s` seconds."""

    def __init__(self, pipeline: Pipeline, variant: str, *, keep_s: float = PART_S) -> None:
        self._pipeline, self._keep_s = pipeline, keep_s
        self.variant = variant

    def run(
        self, folder: Path, stretches: Sequence[Stretch], table: Format, tick: Callable[[int], None]
    ) -> Generator[PartData, None, None]:
        """See `Engine.run`: in order."""
        for stretch in stretches:
            yield from parts_of(self._pipeline, folder, stretch, table, tick, keep_s=self._keep_s)


@dataclass(frozen=True)
class Hears:
    """Who is told how a run goes on: what it takes over; files done and all files at the start; files done since, and
    of these the ones that no kill can undo."""

    resumed: Callable[[Changes, int], None] = lambda _changes, _done: None
    begun: Callable[[int, int], None] = lambda _done, _total: None
    done: Callable[[int], None] = lambda _files: None
    kept: Callable[[int], None] = lambda _files: None


def run_batch(
    package: Package,
    folder: Path,
    output: Path,
    *,
    engine: Engine,
    top: int = 3,
    tensors: bool = False,
    restart: bool = False,
    hears: Hears | None = None,
) -> Report:
    """Every input file below `folder` through `engine`, as the table `output`, which is there once it is complete.

    What an interrupted run with the same settings left is taken over; `restart` forgets it.

    Raises:
        UsageError: no inputs, or none that the model takes; what was left is of a run with other settings.
        StorageError: parts or table cannot be written; what was done before is kept.
        BackendError: the runtime failed on many files in a row.
    """
    hears = hears or Hears()
    table = format_for(output, Layout(package, top=top, tensors=tensors).columns)
    found = scan(folder)
    if not package.manifest.preprocess and not any(e.name.lower().endswith(ARRAY_SUFFIXES) for e in found):
        raise UsageError(
            f"'{package.path.name}' declares no preprocessing, and '{folder}' holds pictures or recordings only. "
            "Give .npz files, or export again with a recipe that declares it."
        )
    settings = Settings(
        package=package.name,
        digest=package.manifest.digest,
        variant=engine.variant,
        folder=str(folder.resolve()),
        top=top,
        tensors=tensors,
    )
    with open_work(output, table.suffix, restart=restart) as work:
        changes = work.resume(settings, found)
        before = work.files_done
        hears.resumed(changes, before)
        hears.begun(before, work.files)
        stretches = [Stretch(start, stop, work.names(start, stop)) for start, stop in work.todo()]
        began = time.monotonic()
        with closing(engine.run(folder, stretches, table, hears.done)) as parts:
            for part in parts:
                work.add(part.start, part.stop, part.data, rows=part.rows, failed=part.failed)
                hears.kept(part.files)
        seconds = time.monotonic() - began
        late = work.changed_since(folder)
        _join(work, table, {"package": package.name, "digest": settings.digest, "variant": engine.variant})
        count = work.files - before
        return Report(
            output=str(output),
            files=work.files,
            rows=sum(p.rows for p in work.parts),
            failed=sum(p.failed for p in work.parts),
            before=before,
            seconds=seconds,
            files_per_s=count / seconds if count and seconds else None,
            changed=changes.changed,
            added=changes.added,
            removed=changes.removed,
            changed_since_read=late,
        )


def _join(work: Work, table: Format, about: dict[str, Any]) -> None:
    joined = work.folder / JOINED
    with storage(work.output):
        table.join((p.path for p in work.parts), joined, about)
    work.finish(joined)


def check_output(output: Path, *, force: bool) -> None:
    """Raises UsageError: `output` cannot be written there."""
    if output.exists() and not force:
        raise UsageError(f"'{output}' exists. Choose another name, or replace it with --force.")
    if not output.parent.is_dir():
        raise UsageError(f"Folder '{output.parent}' does not exist. Make it first.")
