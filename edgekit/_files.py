"""The file system's side of a package: names that stay inside, writes that last, swaps that happen at once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgekit.errors import PackageError, StorageError


def inside(name: str) -> PurePosixPath:
    """`name` as a path that stays inside the package."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise PackageError(f"File name {name!r} leaves the package, so it is refused.")
    return path


def sweep_stages(target: Path) -> None:
    """Remove what killed commands left staged beside `target`."""
    for stale in target.parent.glob(f".{target.name}.staging-*"):
        pid = stale.name.rpartition("staging-")[2].partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # directories of some network file systems cannot be synced
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that readers see the old file or the new one, whole. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_synced(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def exchange(stage: Path, target: Path) -> None:
    """Put `stage` in the place of `target`; what was there ends up at `stage`, to be deleted."""
    if not target.exists():
        stage.rename(target)
        return
    if _renameat2_exchange(stage, target):
        return
    aside = stage.with_name(stage.name + "-old")  # no atomic exchange here: two renames, undone on failure
    target.rename(aside)
    try:
        stage.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(stage)


def _renameat2_exchange(a: Path, b: Path) -> bool:
    """Linux's atomic exchange of two paths; False where the kernel or file system has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    at_fdcwd, exchange = -100, 2
    if call(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back for the few microseconds of the exchange."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _frame: held.append(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def storage_error(target: Path, error: OSError) -> StorageError:
    """`error` as a sentence about `target`."""
    what = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EFBIG: "a file would pass the size limit; raise it",
        errno.EACCES: "no permission to write there; choose another folder",
        errno.EPERM: "no permission to write there; choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "its folder does not exist; make it first",
        errno.ENOTDIR: "its parent is not a folder; choose another place",
    }.get(error.errno or 0, f"{error.strerror or error}; check the disk")
    return StorageError(f"'{target}' was not written: {what} and run again. Nothing was changed.")


@contextlib.contextmanager
def storage(target: Path) -> Iterator[None]:
    """Turn every OSError inside into a StorageError about `target`."""
    try:
        yield
    except OSError as error:
        raise storage_error(target, error) from error
