"""Files kept by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edgekit._files import storage
from edgekit.errors import IntegrityError, PackageError
from edgekit.manifest import File
from edgekit.package import sha256_of
from edgekit.remote.bucket import PIECE_BYTES

UNUSED_S = 3600.0
"""A file that no package links to is kept so long: it may just have been fetched by another process."""


class Blobs:
    """Files under `folder`, named by their digests, linked into packages. Safe for several processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good: dict[tuple[int, int, int], str] = {}

    def fetch(self, file: File, opened: Callable[[], BinaryIO]) -> None:
        """Have the bytes of `file`, from `opened` if they are not here yet.

        Raises:
            IntegrityError: the bytes are others than `file` says.
            StorageError: no space, no permission.
        """
        blob = self._blob(file)
        if self.has(file):
            return
        partial = blob.with_name(f".{blob.name}-{os.getpid()}")
        with storage(blob):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                digest, size = hashlib.sha256(), 0
                with opened() as stream, partial.open("wb") as out:
                    while size <= file.bytes and (piece := stream.read(PIECE_BYTES)):
                        size += len(piece)
                        digest.update(piece)
                        out.write(piece)
                    out.flush()
                    os.fsync(out.fileno())
                if size != file.bytes or digest.hexdigest() != file.sha256:
                    raise IntegrityError(
                        f"'{file.name}' in the storage is not the file of its manifest (its SHA-256 differs). "
                        "Upload the package again, the manifest last."
                    )
                partial.chmod(0o644)
                partial.replace(blob)
            finally:
                partial.unlink(missing_ok=True)
        self._remember(blob, file)

    def has(self, file: File) -> bool:
        """Whether the bytes of `file` are here."""
        return self.is_good(self._blob(file), file)

    def place(self, file: File, target: Path) -> None:
        """Put the bytes of `file` at `target`, as a link where the file system has them. Raises OSError."""
        blob = self._blob(file)
        try:
            os.link(blob, target)
        except OSError:
            shutil.copyfile(blob, target)
        self._remember(target, file)

    def is_good(self, path: Path, file: File) -> bool:
        """Whether the bytes at `path` are those of `file`: read once, and again when the file changed."""
        try:
            stat = path.stat()
        except OSError:
            return False
        state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stat.st_size != file.bytes:
            return False
        if self._good.get(state) != file.sha256:
            if sha256_of(path) != file.sha256:
                return False
            self._good[state] = file.sha256
        return True

    def prune(self, *, unused_s: float = UNUSED_S) -> None:
        """Delete what no package has linked to for `unused_s` seconds."""
        if not self._folder.is_dir():
            return
        now = time.time()
        for path in self._folder.iterdir():
            with suppress(OSError):
                stat = path.stat()
                if stat.st_nlink == 1 and now - max(stat.st_mtime, stat.st_ctime) > unused_s:
                    path.unlink()

    def _blob(self, file: File) -> Path:
        if len(file.sha256) != 64 or not set(file.sha256) <= set("0123456789abcdef"):
            raise PackageError(f"The digest of '{file.name}' in its manifest is no SHA-256.")
        return self._folder / file.sha256

    def _remember(self, path: Path, file: File) -> None:
        stat = path.stat()
        self._good[stat.st_ino, stat.st_mtime_ns, stat.st_size] = file.sha256
