"""A package out of an archive that may come from anyone: checked before it is written, whole or not at all.

Only what `edgekit pack` writes is read: regular files, each of them listed, with the size that the package's manifest
states, in folders below NAME.edge. Everything else ends the reading with one sentence, and nothing is left on disk.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from edgekit._files import exchange, inside, storage, sweep_stages, sync, uninterrupted
from edgekit.deliver.archive import BLOCK, PIECE
from edgekit.errors import IntegrityError, PackageError, StorageError, UsageError
from edgekit.manifest import File, Manifest, decode
from edgekit.package import MANIFEST, SIGNATURE, Package
from edgekit.signature import MAX_BYTES as SIGNATURE_BYTES
from edgekit.signature import TrustedKeys, unsigned

LIMIT_BYTES = 64 << 30
"""What a package may take on disk unless the caller allows more."""

_TEXT_BYTES = 64 << 20
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.DIRTYPE: "a folder",
}
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")

Progress = Callable[[int, int], None]
"""Hears bytes done and bytes in all."""


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    """A package that was unpacked. `signed_by`: fingerprint of the key that was checked; None where none was asked."""

    path: str
    name: str
    version: str
    files: int
    bytes: int
    signed_by: str | None


def unpack(
    archive: Path,
    target: Path | None = None,
    *,
    stream: BinaryIO | None = None,
    force: bool = False,
    keys: TrustedKeys | None = None,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress = lambda _done, _all: None,
) -> Unpacked:
    """Make the package that `archive` holds, at `target` (default: under its own name in the working directory).

    `stream` is read in place of the file. With `keys`, one of them must have signed it: checked before anything else
    is written. `limit_bytes` is the most that the package may take.

    Raises:
        UsageError: `target` exists, and no `force`; no such archive.
        PackageError: not an archive of a package, or of a newer edgekit.
        IntegrityError: damaged, cut off, or made to do harm.
        SignatureError: see `TrustedKeys.check`.
        StorageError: no space, no permission; what was there is as before.
    """
    with _opened(archive, stream) as source:
        members = _Members(source, where=archive.name)
        folder, listed = _listed(members)
        where = _target(target or Path(folder), force=force)
        heads, wanted = _heads(members, folder, listed)
        signed_by = _signature(members, folder, listed, heads, keys)
        sizes = {name: len(data) for name, data in heads.items()}
        total = sum(sizes.values()) + sum(f.bytes for f in wanted.values())
        _check_room(where, total, limit_bytes, folder=folder)
        stage = where.with_name(f".{where.name}.staging-{os.getpid()}-unpack")
        with storage(where):
            sweep_stages(where)
            stage.mkdir()
            try:
                for name, data in heads.items():
                    _write(stage / name, iter((data,)))
                done = sum(sizes.values())
                for _ in range(len(wanted)):
                    name = members.next_of(folder, wanted)
                    file = wanted.pop(name)
                    _write(stage / inside(name), members.data_of(file))
                    done += file.bytes
                    progress(done, total)
                members.end()
                for made in (stage, *(p for p in stage.rglob("*") if p.is_dir())):
                    sync(made)
                with uninterrupted():
                    exchange(stage, where)
                sync(where.parent)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    package = Package.open(where)
    return Unpacked(
        path=str(where),
        name=package.name,
        version=package.manifest.version,
        files=len(listed),
        bytes=total,
        signed_by=signed_by,
    )


class _Members:
    """The files of a tar archive, one after the other; reads no more than it is asked for."""

    def __init__(self, stream: BinaryIO, *, where: str) -> None:
        self._stream = stream
        self._where = where
        self.name, self.size = "", 0

    def error(self, what: str) -> IntegrityError:
        """A sentence about this archive."""
        return IntegrityError(f"'{self._where}' {what}, so nothing was unpacked. Get the archive again.")

    def advance(self) -> bool:
        """Go to the next file; False at the archive's end. Raises IntegrityError: anything but a regular file."""
        block = self._read(BLOCK)
        if not any(block):
            return False
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise self.error("is damaged (a header cannot be read)") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, "of a kind that edgekit pack does not write")
            raise self.error(f"holds {info.name!r}, which is {kind} and not a file")
        if info.size < 0:
            raise self.error(f"states a size below zero for {info.name!r}")
        self.name, self.size = info.name, info.size
        return True

    def text(self, most: int) -> bytes:
        """The whole of a small file."""
        if self.size > most:
            raise self.error(f"states {self.size} bytes for {self.name!r}, where at most {most} are credible")
        data = self._read(self.size)
        self._read(-self.size % BLOCK)
        return data

    def next_of(self, folder: str, wanted: Mapping[str, File]) -> str:
        """Go to the next file, which must be one of `wanted` with its size; returns its name within `folder`."""
        if not self.advance():
            raise self.error(f"lacks {next(iter(wanted))!r}")
        prefix, slash, name = self.name.partition("/")
        if prefix != folder or not slash or name not in wanted:
            raise self.error(f"holds {self.name!r}, which is no file of the package or there twice")
        if self.size != wanted[name].bytes:
            raise self.error(f"states {self.size} bytes for {name!r}, its manifest {wanted[name].bytes}")
        return name

    def data_of(self, file: File) -> Iterator[bytes]:
        """The file's bytes, in pieces; its digest is checked after the last."""
        left, digest = file.bytes, hashlib.sha256()
        while left:
            data = self._read(min(PIECE, left))
            left -= len(data)
            digest.update(data)
            yield data
        self._read(-file.bytes % BLOCK)
        if digest.hexdigest() != file.sha256:
            raise self.error(f"is damaged (the SHA-256 of {file.name!r} is not the one in its manifest)")

    def end(self) -> None:
        """Check that nothing follows but the zeros that end an archive."""
        if self.advance():
            raise self.error(f"holds {self.name!r}, which is no file of the package or there twice")
        rest = self._read(20 * BLOCK, short=True)  # as GNU tar fills the last record
        if any(rest) or len(rest) == 20 * BLOCK:
            raise self.error("goes on after its end")

    def _read(self, count: int, *, short: bool = False) -> bytes:
        out = bytearray()
        try:
            while len(out) < count:
                data = self._stream.read(count - len(out))
                if not data:
                    if short:
                        break
                    raise self.error("is cut off")
                out += data
        except EOFError as error:
            raise self.error("is cut off") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self.error("is damaged (it cannot be decompressed)") from error
        return bytes(out)


@contextmanager
def _opened(archive: Path, stream: BinaryIO | None) -> Iterator[BinaryIO]:
    try:
        raw = stream or archive.open("rb")
    except OSError as error:
        raise UsageError(f"Archive '{archive}' cannot be read ({error.strerror}). Check the path.") from error
    with raw:
        try:
            start = raw.peek(2)[:2]  # type: ignore[attr-defined]
        except OSError as error:
            raise UsageError(f"Archive '{archive}' cannot be read ({error.strerror}). Check the path.") from error
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb")) if start == b"\x1f\x8b" else raw


def _listed(members: _Members) -> tuple[str, dict[str, str]]:
    """The name of the package's folder, and the SHA-256 of every file by its name in it."""
    try:
        found = members.advance()
    except IntegrityError:
        found, members.name = False, ""
    folder = members.name.removesuffix(".sha256")
    if not found or folder == members.name or not folder.endswith(".edge") or "/" in folder or folder == ".edge":
        raise PackageError(f"'{members._where}' is not an archive of a package. Make one with: edgekit pack X.edge")
    if folder.startswith(".") or not folder.isprintable():
        raise members.error(f"names its package {folder!r}, which is refused")
    try:
        text = members.text(_TEXT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise members.error("is damaged (its list of digests cannot be read)") from error
    listed: dict[str, str] = {}
    lines = _LINE.findall(text)
    for digest, path in lines:
        prefix, _, name = path.partition("/")
        if prefix != folder or name in listed or not name.isprintable():
            raise members.error(f"lists {path!r}, which is refused")
        if inside(name).as_posix() != name:
            raise members.error(f"lists {path!r}, which is refused")
        listed[name] = digest
    if sum(len(d) + len(p) + 3 for d, p in lines) != len(text):
        raise members.error("is damaged (its list of digests cannot be read)")
    return folder, listed


def _heads(members: _Members, folder: str, listed: Mapping[str, str]) -> tuple[dict[str, bytes], dict[str, File]]:
    """The bytes of all manifests, and the files that they state: together with a signature all that is listed."""
    heads: dict[str, bytes] = {}
    wanted: dict[str, File] = {}

    def manifest(prefix: str) -> Manifest:
        heads[f"{prefix}{MANIFEST}"] = data = _head(members, folder, f"{prefix}{MANIFEST}", listed)
        found = decode(data, where=f"{folder}/{prefix}".rstrip("/"))
        for f in found.all_files().values():
            name = prefix + inside(f.name).as_posix()
            wanted[name] = File(name=name, sha256=f.sha256, bytes=f.bytes)
        return found

    stages = manifest("").stages
    for stage in () if isinstance(stages, msgspec.UnsetType) else stages:
        manifest(f"{inside(stage.package)}/")
    if {*heads, *wanted} != set(listed) - {SIGNATURE} or SIGNATURE in wanted or set(heads) & set(wanted):
        raise members.error("lists other files than its manifest does")
    if any(f.bytes < 0 or listed[f.name] != f.sha256 for f in wanted.values()):
        raise members.error("lists other digests than its manifest does")
    return heads, wanted


def _head(members: _Members, folder: str, name: str, listed: Mapping[str, str], most: int = _TEXT_BYTES) -> bytes:
    if not members.advance() or members.name != f"{folder}/{name}":
        raise members.error(f"lacks {name!r} where it is expected")
    data = members.text(most)
    if hashlib.sha256(data).hexdigest() != listed.get(name):
        raise members.error(f"is damaged (the SHA-256 of {name!r} is not the one that is listed)")
    return data


def _signature(
    members: _Members, folder: str, listed: Mapping[str, str], heads: dict[str, bytes], keys: TrustedKeys | None
) -> str | None:
    """Read the signature into `heads`, if there is one, and check it if that is asked for."""
    stated = {name: listed[name] for name in heads}
    if SIGNATURE in listed:
        heads[SIGNATURE] = _head(members, folder, SIGNATURE, listed, SIGNATURE_BYTES)
    if keys is None:
        return None
    if SIGNATURE not in heads:
        raise unsigned(folder)
    return keys.check_bytes(heads[SIGNATURE], stated, where=folder)


def _target(target: Path, *, force: bool) -> Path:
    if target.suffix != ".edge" or target.name in ("", ".edge"):
        raise UsageError(f"'{target}' is not a package name; expected NAME.edge, for example: -o model.edge")
    if target.exists() or target.is_symlink():
        if not force:
            raise UsageError(f"'{target}' exists. Choose another name with -o, or replace it with --force.")
        if not (target / MANIFEST).is_file():
            raise UsageError(f"'{target}' exists and is not a package, so --force does not replace it.")
    target = target.parent.resolve() / target.name
    return target.resolve() if target.is_symlink() else target


def _check_room(where: Path, total: int, limit_bytes: int, *, folder: str) -> None:
    if total > limit_bytes:
        raise UsageError(
            f"'{folder}' would take {total / 1e9:.1f} GB, more than the limit of {limit_bytes / 1e9:.1f} GB. "
            "If it is meant to be so large, raise --limit-gb."
        )
    with storage(where):
        free = shutil.disk_usage(where.parent).free
    if total > free:
        raise StorageError(
            f"'{where}' was not written: it takes {total / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free. "
            "Free some space and run again. Nothing was changed."
        )


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for data in pieces:
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
