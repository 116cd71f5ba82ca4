"""A package's files on their way to a device: only those that are not there, each from where it was cut off."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit._files import inside
from edgekit.deliver.archive import index_of
from edgekit.deliver.scripts import APPEND, DISCARD, SAME, SURVEY
from edgekit.deliver.ssh import LOST, PIECE, Answer, Host, check_name
from edgekit.errors import DeviceError, IntegrityError
from edgekit.manifest import File
from edgekit.package import SIGNATURE, Package, sha256_of

Progress = Callable[[int, int], None]
"""Hears how many bytes are there, and how many there will be."""

_FULL = ("No space left", "Disk quota exceeded", "File too large", "File size limit")
_KILLED_BY_SIZE = 153


@dataclass(frozen=True)
class Sent:
    """What a transfer took: bytes that went over the line, and bytes that were there."""

    sent_bytes: int
    reused_bytes: int


class Delivery:
    """One package, and its way to a folder on a device. `path` is the local package's; `files` what it consists of.

    The manifests are those that were opened; files are read when they are sent, and their digests are checked there.
    """

    def __init__(self, package: Package) -> None:
        """Raises UsageError: a file name that does not travel."""
        self.package = package
        self.name = check_name(package.path.name)
        self.files, index = index_of(package)
        for name in self.files:
            check_name(name)
        self._list = "".join(f"{f.sha256} {f.bytes} {name}\n" for name, f in self.files.items()).encode()
        self.index = index
        self.bytes = sum(f.bytes for f in self.files.values())

    def is_at(self, host: Host, place: str) -> bool:
        """Whether the package at `place` is this one, every byte of it."""
        signed = "signed" if SIGNATURE in self.files else "plain"
        answer = _held(host, host.run(SAME, place, signed, data=self._list))
        return answer.code == 0

    def send(
        self, host: Host, place: str, *, reuse: str, base: str = "", progress: Progress = lambda _done, _all: None
    ) -> Sent:
        """Have this package's files at `place`, taking from the package at `reuse` there what is equal.

        What a broken transfer left at `place` is gone on from. `base` is a folder that must be there.

        Raises:
            DeviceError: the connection was lost, the disk is full, or a file does not arrive whole.
            IntegrityError: a file of the package here was changed.
        """
        missing, free_bytes = self._survey(host, place, reuse, base)
        left = sum(self.files[name].bytes - offset for name, offset in missing.items())
        done = reused = self.bytes - left
        if left > free_bytes:
            self.discard(host, place)
            raise DeviceError(
                f"{host.name} has {size_text(free_bytes)} free at {posixpath.dirname(reuse)}, "
                f"and {size_text(left)} are to be sent. Free some space there. What was there is as before."
            )

        def more(count: int) -> None:
            nonlocal done
            done += count
            progress(min(done, self.bytes), self.bytes)

        for _attempt in range(2):  # the second one is for what was there in part, and damaged
            more(0)
            for name, offset in missing.items():
                self._append(host, place, name, offset, more)
            missing, _ = self._survey(host, place, reuse, base)
            if not missing:
                return Sent(sent_bytes=left, reused_bytes=reused)
        wrong = next(iter(missing))
        if sha256_of(self.package.path / inside(wrong)) != self.files[wrong].sha256:
            raise IntegrityError(
                f"'{wrong}' in '{self.package.path.name}' was changed: its SHA-256 does not match the manifest. "
                "Restore it, or export again."
            )
        raise DeviceError(
            f"'{wrong}' did not arrive whole on {host.name}: its SHA-256 there is another one. "
            "Nothing was put in place. See whether another push is running, and check the device's disk."
        )

    def discard(self, host: Host, place: str) -> None:
        """Remove what was sent."""
        host.run(DISCARD, place)

    def _survey(self, host: Host, place: str, reuse: str, base: str) -> tuple[dict[str, int], int]:
        """The files that are not there whole, with the bytes of each that are; and the bytes that are free."""
        answer = _held(host, host.run(SURVEY, place, reuse, base, data=self._list))
        lines = answer.out.splitlines()
        if answer.code != 0 or not lines or not lines[-1].startswith("free "):
            raise self._failed(host, place, answer)
        states = [line.split(" ", 2) for line in lines[:-1]]
        return {name: int(count) for state, count, name in states if state == "part"}, int(lines[-1].split()[1]) * 1024

    def _append(self, host: Host, place: str, name: str, offset: int, progress: Callable[[int], None]) -> None:
        counted = offset

        def data() -> Iterator[bytes]:
            nonlocal counted
            for piece in _pieces(self.package, self.files[name], offset):
                yield piece
                counted += len(piece)
                progress(len(piece))

        answer = host.run(APPEND, f"{place}/{name}", str(offset), data=data())
        if answer.code == LOST:
            raise lost(host, f"after {size_text(counted)} of '{name}'", answer)
        if answer.code != 0:
            raise self._failed(host, place, answer)

    def _failed(self, host: Host, place: str, answer: Answer) -> DeviceError:
        if answer.code == _KILLED_BY_SIZE or any(text in answer.said for text in _FULL):
            self.discard(host, place)
            return DeviceError(
                f"The disk of {host.name} is full (or a limit is reached: {answer.said or 'file size'}). "
                "Free some space there and push again. What was there is as before."
            )
        return DeviceError(
            f"{host.name} does not take the package: {answer.said or f'exit code {answer.code}'}. "
            "Check the folder and its permissions. What was there is as before."
        )


def size_text(count: int) -> str:
    """A size in words: 512 B, 23.4 kB, 1.2 MB (powers of 1000)."""
    if count < 1e3:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def lost(host: Host, when: str, answer: Answer) -> DeviceError:
    """The error for a connection that broke."""
    why = f" ({answer.said})" if answer.said else ""
    return DeviceError(
        f"The connection to {host.name} was lost {when}{why}. What was there is as before; "
        "run the command again, and it goes on from here."
    )


def _held(host: Host, answer: Answer) -> Answer:
    if answer.code == LOST:
        raise lost(host, "while it was asked what it has", answer)
    return answer


def _pieces(package: Package, file: File, offset: int) -> Iterator[bytes]:
    """A file's bytes from `offset` on, as many as the manifest says."""
    left = file.bytes - offset
    path: Path = package.path / inside(file.name)
    try:
        with path.open("rb") as source:
            source.seek(offset)
            while left and (piece := source.read(min(PIECE, left))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise IntegrityError(
            f"'{package.path.name}' lacks its file '{file.name}' ({error.strerror}). Restore it, or export again."
        ) from error
    if left:
        raise IntegrityError(
            f"'{file.name}' in '{package.path.name}' was changed: it is shorter than its manifest says. "
            "Restore it, or export again."
        )
