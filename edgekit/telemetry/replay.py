"""Playing a recorded machine: a tree of files that changes as it did when it was captured.

with Replay(Path("orin.tar.zst")) as board:
    samples = board.samples()["jetson-rails"]      # or: board.advance(12.0); Monitor(board.root).read()
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from edgekit._lazy import require
from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.capture import FORMAT
from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.sensors import Sample

_MOST_FILES = 20_000
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """What changed at `t_s` seconds after the start: file -> its text, or None where it cannot be read."""

    t_s: float
    files: dict[str, str | None]


class Replay:
    """One capture. As a context manager it keeps a folder, `root`, that holds the machine's files at `now_s`."""

    def __init__(self, path: Path) -> None:
        """Read the capture at `path`. Raises UsageError if it is none, MissingDependencyError without zstandard."""
        self.path = path
        members = _read_archive(path)
        try:
            head = json.loads(members["capture.json"])
            if head["format"] != FORMAT or head["version"] != 1:
                raise ValueError(f"format {head['format']!r} version {head['version']!r}")
            self.frames = tuple(_frames(members["frames.jsonl"]))
            self.origin = str(head["origin"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"'{path}' is no capture of this edgekit ({error}). Make one: edgekit board capture"
            ) from None
        self._tree = {n.removeprefix("tree/"): data for n, data in members.items() if n.startswith("tree/")}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._next = 0
        self.now_s = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last reading."""
        return self.frames[-1].t_s if self.frames else 0.0

    @property
    def root(self) -> Path:
        """The folder that stands for the machine's `/`, inside the `with` only. Raises UsageError outside of it."""
        if self._folder is None:
            raise UsageError("A Replay has a root inside its 'with' block only.")
        return Path(self._folder.name)

    def __enter__(self) -> Replay:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-replay-")
        for name, data in self._tree.items():
            self._write(name, data)
        self._next, self.now_s = 0, 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    def advance(self, t_s: float) -> bool:
        """Bring the files to what they were `t_s` seconds after the start; False once the capture is over.

        Time goes forward only. Readers see a file's old text or its new one, whole.
        """
        while self._next < len(self.frames) and self.frames[self._next].t_s <= t_s:
            for name, text in self.frames[self._next].files.items():
                if text is None:
                    (self.root / name).unlink(missing_ok=True)
                else:
                    self._write(name, text.encode())
            self._next += 1
        self.now_s = max(self.now_s, t_s)
        return self._next < len(self.frames)

    def samples(self) -> dict[str, tuple[Sample, ...]]:
        """What each power sensor of the machine said, by its name; `t_s` counts from the capture's start.

        A sensor that stops being readable ends there.
        """
        sensors = list(find_sensors(self.root).sensors)
        out: dict[str, list[Sample]] = {s.name: [] for s in sensors}
        for frame in self.frames:
            self.advance(frame.t_s)
            for sensor in tuple(sensors):
                try:
                    out[sensor.name].append(dataclasses.replace(sensor.read(), t_s=frame.t_s))
                except SensorError:
                    sensors.remove(sensor)
        return {name: tuple(samples) for name, samples in out.items()}

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)


@contextmanager
def opened_root(path: Path) -> Iterator[tuple[Path, Replay | None]]:
    """A folder as it is, or the root of a capture that is being replayed.

    Raises:
        UsageError: neither a folder nor a capture.
    """
    if path.is_dir():
        yield path, None
        return
    if not path.exists():
        raise UsageError(f"'{path}' is not there. Give a folder that holds /sys and /proc, or a capture (.tar.zst).")
    with Replay(path) as replay:
        yield replay.root, replay


def _frames(text: bytes) -> Iterator[Frame]:
    for line in text.splitlines():
        frame: Any = json.loads(line)
        files = frame["files"]
        for name, value in files.items():
            _inside(name)
            if not isinstance(value, (str, type(None))):
                raise ValueError(f"'{name}' holds no text")
        yield Frame(float(frame["t_s"]), dict(files))


def _inside(name: str) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise ValueError(f"file name {name!r} leaves the capture")


def _read_archive(path: Path) -> dict[str, bytes]:
    """Name -> content of every plain file in the archive; bounded in number and size."""
    members: dict[str, bytes] = {}
    left = _MOST_BYTES
    try:
        with (
            path.open("rb") as file,
            _decompressed(path, file) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for entry in tar:
                if not entry.isreg() or len(members) >= _MOST_FILES or entry.size > left:
                    raise UsageError(f"'{path}' holds more than a capture does ('{entry.name}'), so it is refused.")
                _inside(entry.name)
                content = tar.extractfile(entry)
                members[entry.name] = content.read() if content is not None else b""
                left -= entry.size
    except OSError as error:
        if error.errno is not None:
            raise UsageError(f"'{path}' cannot be read ({error.strerror}).") from error
        raise UsageError(f"'{path}' is no capture: it is not a .tar.zst or .tar.gz file, or it is cut off.") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UsageError(f"'{path}' is no capture: it is not a .tar.zst or .tar.gz file, or it is cut off.") from error
    return members


@contextmanager
def _decompressed(path: Path, file: io.BufferedReader) -> Iterator[Any]:
    if file.peek(4)[:4] == b"\x28\xb5\x2f\xfd":
        zstandard = require("zstandard", why=f"read '{path.name}'")
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as stream:
                yield stream
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    else:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream
