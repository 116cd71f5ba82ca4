"""A package as one file: the same bytes for the same content, and nothing but that content when it is unpacked.

The file is a plain tar archive (optionally gzipped) that every tar reads: first NAME.edge.sha256, digests that
`sha256sum -c` checks, then the manifests, the signature if there is one, and the other files by name. What is known of
every file before its bytes come lets a reader refuse anything else before it writes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgekit._files import inside, storage
from edgekit.contents import contents, manifests
from edgekit.errors import IntegrityError, UsageError
from edgekit.manifest import File
from edgekit.package import SIGNATURE, Package, sha256_of

SUFFIXES = (".edge.tar", ".edge.tar.gz")
BLOCK = 512
PIECE = 1 << 20
NAME_BYTES, PREFIX_BYTES = 100, 155
_GZIP_LEVEL = 6

Progress = Callable[[int], None]
"""Hears how many more bytes were done."""


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that was written: `files` in it without the list of digests, `bytes` and `sha256` of the archive."""

    path: str
    package: str
    files: int
    bytes: int
    sha256: str


def index_of(package: Package) -> tuple[dict[str, File], bytes]:
    """Every file that an archive of `package` holds, in order, and the list of their digests as `sha256sum` writes it.

    Raises UsageError: a name that a list of lines cannot hold.
    """
    files = contents(package)
    heads = list(manifests(package))
    signature = package.path / SIGNATURE
    if signature.is_file():
        with storage(signature):
            data = signature.read_bytes()
        files[SIGNATURE] = File(name=SIGNATURE, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        heads.append(SIGNATURE)
    ordered = {name: files[name] for name in (*heads, *sorted(set(files) - set(heads)))}
    for name in ordered:
        inside(name)
        if not name.isprintable():
            raise UsageError(f"File name {name!r} holds characters that an archive cannot list. Rename the file.")
    lines = [f"{file.sha256}  {package.path.name}/{name}\n" for name, file in ordered.items()]
    return ordered, "".join(lines).encode()


def content_digest(package: Package) -> str:
    """A name for exactly this content, signature included: SHA-256 of the list of digests."""
    return hashlib.sha256(index_of(package)[1]).hexdigest()


def pack(package: Package, output: Path, *, force: bool = False, progress: Progress = lambda _n: None) -> Packed:
    """Write `package` to `output`, NAME.edge.tar or NAME.edge.tar.gz, in one step.

    Raises:
        UsageError: another suffix; `output` exists, and no `force`; a name too long for tar.
        IntegrityError: a file of the package is not what its manifest says.
        StorageError: no space, no permission; what was there is as before.
    """
    if not output.name.endswith(SUFFIXES):
        raise UsageError(f"'{output}' is not an archive's name; expected NAME.edge.tar or NAME.edge.tar.gz.")
    if output.exists() and not force:
        raise UsageError(f"'{output}' exists. Choose another name, or replace it with --force.")
    files, index = index_of(package)
    texts = manifests(package)  # what was opened, not what may lie there by now
    folder = package.path.name
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    with storage(output):
        try:
            with partial.open("wb") as raw:
                with _compressed(raw, output) as out:
                    out.write(header(f"{folder}.sha256", len(index)) + index + padding(len(index)))
                    for name, file in files.items():
                        out.write(header(f"{folder}/{name}", file.bytes))
                        pieces = iter((texts[name],)) if name in texts else _pieces(package, name)
                        _copy(pieces, file, out, progress, where=folder)
                    out.write(bytes(2 * BLOCK))
                raw.flush()
                os.fsync(raw.fileno())
            digest = sha256_of(partial)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    return Packed(path=str(output), package=folder, files=len(files), bytes=output.stat().st_size, sha256=digest)


def _copy(pieces: Iterator[bytes], file: File, out: BinaryIO, progress: Progress, *, where: str) -> None:
    """Append a file, checked on the way. Raises IntegrityError, or OSError of the writing side."""
    digest, size = hashlib.sha256(), 0
    for data in pieces:
        size += len(data)
        if size > file.bytes:
            break
        digest.update(data)
        out.write(data)
        progress(len(data))
    if size != file.bytes or digest.hexdigest() != file.sha256:
        raise IntegrityError(
            f"'{file.name}' in '{where}' was changed: its SHA-256 does not match the manifest. "
            "Restore it, or export again."
        )
    out.write(padding(size))


def _pieces(package: Package, name: str) -> Iterator[bytes]:
    try:
        file = (package.path / inside(name)).open("rb")
    except OSError as error:
        raise IntegrityError(
            f"'{package.path.name}' lacks its file '{name}' ({error.strerror}). Restore it, or export again."
        ) from error
    with file:
        while data := file.read(PIECE):
            yield data


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a file in a tar archive (POSIX ustar), which depend on nothing but name and size.

    Raises UsageError: the name does not fit.
    """
    prefix, own = b"", name.encode()
    if len(own) > NAME_BYTES:
        cut = own.find(b"/", len(own) - NAME_BYTES - 1)
        prefix, own = own[: max(cut, 0)], own[cut + 1 :]
        if cut <= 0 or len(prefix) > PREFIX_BYTES:
            raise UsageError(f"File name '{name}' is too long for a tar archive. Shorten it.")
    octal = b"%011o\0" % size
    count = octal if len(octal) == 12 else (1 << 95 | size).to_bytes(12, "big")  # from 8 GiB on, as GNU tar does it
    fields = (own.ljust(NAME_BYTES, b"\0"), b"0000644\0", b"0000000\0" * 2, count, b"%011o\0" % 0)
    ends = (b"0".ljust(101, b"\0"), b"ustar\x0000".ljust(88, b"\0"), prefix.ljust(PREFIX_BYTES, b"\0"), bytes(12))
    before, after = b"".join(fields), b"".join(ends)
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % checksum + after


def padding(size: int) -> bytes:
    """The zeros that follow a file of `size` bytes."""
    return bytes(-size % BLOCK)


@contextmanager
def _compressed(raw: BinaryIO, output: Path) -> Iterator[BinaryIO]:
    if output.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as out:
        yield out  # type: ignore[misc]
