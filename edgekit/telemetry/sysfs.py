"""Small files that the kernel makes up while they are read: /sys and /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_MOST_BYTES = 1 << 16


def read_text(path: Path) -> str | None:
    """The file's text without the trailing newline and NULs, or None where it cannot be read.

    Reads with `os.read`: a thermal zone that is powered down answers EAGAIN, on which text files raise TypeError.
    """
    try:
        return read_text_or_raise(path)
    except OSError:
        return None


def read_text_or_raise(path: Path) -> str:
    """As `read_text`. Raises OSError where the file cannot be read."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(handle, _MOST_BYTES):
            pieces.append(piece)
    finally:
        os.close(handle)
    return _plain(b"".join(pieces))


def read_int(path: Path) -> int | None:
    """The file's whole number, or None where it cannot be read or is not one (of at most 20 digits)."""
    return whole(read_text(path))


def whole(text: str | None) -> int | None:
    """`text` as a whole number of at most 20 digits, or None."""
    return int(text) if text is not None and _WHOLE.fullmatch(text) else None


def by_number(folder: Path, pattern: str) -> list[Path]:
    """Entries of `folder` that match, `hwmon2` before `hwmon10`; empty where there is no such folder."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(c for c in path.name if c.isdigit())
        return (int(digits) if digits else -1, path.name)

    try:
        return sorted(folder.glob(pattern), key=key)
    except OSError:
        return []


class Attribute:
    """One small file that is read again and again: it is kept open, so that a reading is one system call.

    Safe for one thread at a time. The file may vanish and come back; each reading then says so or finds it again.
    """

    __slots__ = ("_handle", "_kernel", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kernel = str(path).startswith(("/sys/", "/proc/"))
        self._handle = -1

    def text(self) -> str | None:
        """The file's text without surrounding blanks and NULs, or None where it cannot be read now."""
        try:
            return self.text_or_raise()
        except OSError:
            return None

    def text_or_raise(self) -> str:
        """As `text`. Raises OSError."""
        if self._handle >= 0:
            try:
                # the kernel says itself when a device is gone; a file of a tree may be removed or replaced
                if self._kernel or os.fstat(self._handle).st_nlink:
                    return _plain(os.pread(self._handle, _MOST_BYTES, 0))
            except BlockingIOError:
                raise
            except OSError:
                pass  # the device went away (ENODEV): it may be back under the same name
            self.close()
        self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return _plain(os.pread(self._handle, _MOST_BYTES, 0))

    def integer(self) -> int | None:
        """The file's whole number, or None where it cannot be read now or is none."""
        return whole(self.text())

    def close(self) -> None:
        """Close the file; the next reading opens it again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()


def attribute(path: Path) -> Attribute | None:
    """The file at `path` to be read repeatedly, or None where there is none."""
    return Attribute(path) if path.exists() else None


def _plain(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip("\0 \t\r\n")
