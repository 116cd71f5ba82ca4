"""What builds leave for the next one: engines by the digest of all that made them, and timing caches by target.

The folder is EDGEKIT_CACHE, else edgekit/ in XDG_CACHE_HOME or ~/.cache. It is a convenience: a folder that cannot be
written or a damaged entry costs a build, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from edgekit._files import write_atomic
from edgekit.engine.inspect import EngineLayers

LARGEST = 4 << 30
"""Bytes of engines to keep; the ones unused for longest go first."""


class CachedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a cached engine."""

    sha256: str
    build_s: float
    found: EngineLayers


def cache_folder() -> Path:
    """Where caches live."""
    given = os.environ.get("EDGEKIT_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"


def cached_engine(digest: str) -> tuple[bytes, CachedEngine] | None:
    """The engine of that digest with its facts, its bytes checked; None if there is none."""
    path = cache_folder() / "engines" / f"{digest}.engine"
    try:
        facts = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=CachedEngine)
        data = path.read_bytes()
    except (OSError, msgspec.DecodeError):
        return None
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return data, facts


def keep_engine(digest: str, data: bytes, *, build_s: float, found: EngineLayers) -> None:
    """Keep an engine; older ones make room."""
    folder = cache_folder() / "engines"
    facts = CachedEngine(sha256=hashlib.sha256(data).hexdigest(), build_s=build_s, found=found)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{digest}.engine", data)
        write_atomic(folder / f"{digest}.json", msgspec.json.encode(facts))
        _make_room(folder)


def _make_room(folder: Path) -> None:
    entries = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.engine")), reverse=True)
    total = 0
    for _, size, path in entries:
        total += size
        if total > LARGEST:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def _timing_path(key: str) -> Path:
    return cache_folder() / "timing" / f"{key}.cache"


def timing_cache(key: str) -> bytes:
    """The timing cache kept under `key` (module, release and GPU); empty if there is none."""
    try:
        return _timing_path(key).read_bytes()
    except OSError:
        return b""


def keep_timing_cache(key: str, data: bytes) -> None:
    """Keep a timing cache for the next build with the same key."""
    path = _timing_path(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
