"""Small files that the kernel makes up while they are read: /sys and /proc."""

from __future__ import annotations

import os
from pathlib import Path


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
        while piece := os.read(handle, 65536):
            pieces.append(piece)
    finally:
        os.close(handle)
    return b"".join(pieces).decode("utf-8", "replace").strip("\0 \t\r\n")


def read_int(path: Path) -> int | None:
    """The file's whole number, or None where it cannot be read or is not one."""
    text = read_text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def by_number(folder: Path, pattern: str) -> list[Path]:
    """Entries of `folder` that match, `hwmon2` before `hwmon10`; empty where there is no such folder."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(c for c in path.name if c.isdigit())
        return (int(digits) if digits else -1, path.name)

    try:
        return sorted(folder.glob(pattern), key=key)
    except OSError:
        return []
