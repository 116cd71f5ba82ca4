"""What a run has to do and what of it is done, on disk, so that an interrupted run goes on where it was.

Beside OUT lies the folder `.OUT.partial` with the plan (settings and every input with its size and time of change) and
the parts that are finished, each named after the inputs that it holds. Parts and plan are written in one step each, so
what is there is whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgekit._files import storage, sync, write_atomic
from edgekit.errors import StorageError, UsageError
from edgekit.inputs import INPUT_SUFFIXES

PLAN, LOCK, JOINED = "plan.json", "lock", "joined"
GONE = -1
"""The size of an input that is no more there."""

_PART = re.compile(r"part-(\d{12})-(\d{12})-(\d+)-(\d+)\.\w+")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One input: its name below the folder, and what tells that it is still the same."""

    name: str
    size: int
    changed_ns: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same for two runs to make one table."""

    package: str
    digest: str
    variant: str
    folder: str
    top: int
    tensors: bool


class _Plan(msgspec.Struct, frozen=True):
    settings: Settings
    entries: list[Entry]


@dataclass(frozen=True)
class Part:
    """A finished stretch of inputs, `start` to `stop` of the plan, with how many rows and failed files it has."""

    start: int
    stop: int
    rows: int
    failed: int
    path: Path


@dataclass
class Changes:
    """Inputs that are not what they were when the interrupted run looked."""

    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)


def scan(folder: Path) -> list[Entry]:
    """Every picture, recording and numpy file below `folder`, sorted by name.

    Raises:
        UsageError: it is no folder, or holds none.
        StorageError: it cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder. Give the folder that holds the inputs.")
    found: list[Entry] = []

    def refuse(error: OSError) -> None:
        raise StorageError(f"'{error.filename}' cannot be read ({error.strerror}). Check the folder's permissions.")

    for where, _folders, files in os.walk(folder, onerror=refuse):
        for name in files:
            if name.lower().endswith(INPUT_SUFFIXES):
                path = os.path.join(where, name)
                stat = _stat(path)
                if stat is not None:
                    found.append(Entry(os.path.relpath(path, folder), *stat))
    if not found:
        raise UsageError(f"'{folder}' holds no input files; expected {', '.join(INPUT_SUFFIXES)}.")
    return sorted(found, key=lambda e: e.name)


def _stat(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change, or None for what is no file (any more)."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a link to nowhere is read, and so named as bad; a file that went is not
        return (0, 0) if os.path.islink(path) else None
    except OSError:
        return 0, 0
    return (status.st_size, status.st_mtime_ns) if os.path.isfile(path) else None


class Work:
    """The folder of one run. Use `open_work`."""

    def __init__(self, output: Path, suffix: str) -> None:
        self.output = output
        self.folder = folder_of(output)
        self._suffix = suffix
        self.entries: list[Entry] = []
        self.parts: list[Part] = []

    @property
    def files(self) -> int:
        """Inputs that the table is to have."""
        return sum(e.size != GONE for e in self.entries)

    @property
    def files_done(self) -> int:
        """Inputs that are in a finished part."""
        return sum(len(self.names(p.start, p.stop)) for p in self.parts)

    def names(self, start: int, stop: int) -> list[tuple[int, str]]:
        """The inputs of a stretch, each with its place in the plan."""
        return [(start + i, e.name) for i, e in enumerate(self.entries[start:stop]) if e.size != GONE]

    def resume(self, settings: Settings, found: Sequence[Entry]) -> Changes:
        """Take over what an interrupted run with the same settings left, as far as its inputs are still the same.

        A part with an input that changed or went is done again; inputs that came since are put at the end.

        Raises:
            UsageError: what was left is of a run with other settings.
            StorageError: the plan cannot be written.
        """
        before = self._read_plan()
        changes = Changes()
        self.entries = list(found)
        if before is not None:
            _check_same(before.settings, settings, self.output)
            self._merge(before.entries, found, changes)
        else:
            for path in self.folder.glob("part-*"):
                path.unlink()
        self.parts = self._finished()
        plan = msgspec.json.encode(
            _Plan(settings, [msgspec.structs.replace(e, name=text_of(e.name)) for e in self.entries])
        )
        with storage(self.output):
            write_atomic(self.folder / PLAN, plan)
        return changes

    def todo(self) -> Iterator[tuple[int, int]]:
        """The stretches of inputs that are in no part yet, in order."""
        at = 0
        for part in self.parts:
            if part.start > at:
                yield at, part.start
            at = part.stop
        if at < len(self.entries):
            yield at, len(self.entries)

    def add(self, start: int, stop: int, data: bytes, *, rows: int, failed: int) -> None:
        """Keep a finished part; one that is there already stays. Raises StorageError."""
        if any(p.start < stop and start < p.stop for p in self.parts):
            return
        path = self.folder / f"part-{start:012}-{stop:012}-{rows}-{failed}{self._suffix}"
        with storage(self.output):
            write_atomic(path, data)
        self.parts.append(Part(start, stop, rows, failed, path))
        self.parts.sort(key=lambda p: p.start)

    def changed_since(self, folder: Path) -> list[str]:
        """The names of inputs that are not what they were when they were planned."""
        present = (e for e in self.entries if e.size != GONE)
        return [text_of(e.name) for e in present if _stat(folder / e.name) != (e.size, e.changed_ns)]

    def finish(self, joined: Path) -> None:
        """Put the table, complete at `joined`, in its place; then the folder of work goes. Raises StorageError."""
        with storage(self.output):
            with joined.open("rb") as file:
                os.fsync(file.fileno())
            joined.replace(self.output)
            sync(self.output.parent)
        (self.folder / PLAN).unlink(missing_ok=True)  # first, so that nothing is taken over from what is left
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_plan(self) -> _Plan | None:
        try:
            return msgspec.json.decode((self.folder / PLAN).read_bytes(), type=_Plan)
        except (OSError, msgspec.DecodeError):
            return None

    def _merge(self, before: Sequence[Entry], found: Sequence[Entry], changes: Changes) -> None:
        """Bring the inputs to those that are there now, each in its old place; parts that this spoils are removed.

        A place whose input is gone stays, empty, so that parts keep their names and a kill at any time does no harm.
        """
        now = {text_of(e.name): e for e in found}
        places: list[Entry] = []
        for old in before:
            new = now.get(old.name)
            if new is None:
                if old.size != GONE:
                    changes.removed.append(old.name)
                new = Entry(old.name, GONE, 0)
            elif old.size == GONE:
                changes.added.append(old.name)
            elif (old.size, old.changed_ns) != (new.size, new.changed_ns):
                changes.changed.append(old.name)
            places.append(new)
        known = {e.name for e in before}
        later = [e for e in found if text_of(e.name) not in known]
        spoiled = {*changes.changed, *changes.removed, *changes.added}
        changes.added += [text_of(e.name) for e in later]
        for part in self._finished():
            if any(e.name in spoiled for e in before[part.start : part.stop]):
                part.path.unlink()
        self.entries = places + later

    def _finished(self) -> list[Part]:
        """The parts on disk, in order; what a killed run was still writing is removed."""
        parts = []
        for path in sorted(self.folder.iterdir()):
            name = _PART.fullmatch(path.name)
            if name is not None:
                start, stop, rows, failed = map(int, name.groups())
                parts.append(Part(start, stop, rows, failed, path))
            elif path.name not in (PLAN, LOCK):
                path.unlink()
        return parts


@contextmanager
def open_work(output: Path, suffix: str, *, restart: bool = False) -> Iterator[Work]:
    """The work folder of `output`, this process's alone; `restart` forgets what was done before.

    Raises:
        UsageError: another process works there.
        StorageError: it cannot be made.
    """
    folder = folder_of(output)
    with storage(output):
        folder.mkdir(exist_ok=True)
        lock = (folder / LOCK).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another edgekit batch writes '{output}'. Wait for it, or name another file.") from None
        if restart:
            (folder / PLAN).unlink(missing_ok=True)
        yield Work(output, suffix)


def folder_of(output: Path) -> Path:
    """Where the work on `output` is kept until it is complete."""
    return output.with_name(f".{output.name}.partial")


def text_of(name: str) -> str:
    """A file's name as text that every table holds: bytes that are not UTF-8 are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_same(before: Settings, now: Settings, output: Path) -> None:
    for name in Settings.__struct_fields__:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            what = "package's content" if name == "digest" else name
            differs = f"{what} ({old} then, {new} now)" if name != "digest" else what
            raise UsageError(
                f"The unfinished run for '{output}' had another {differs}. Give the same again to go on with it, "
                "or begin anew with --restart."
            )
