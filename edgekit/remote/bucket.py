"""What lies under a URL, read through fsspec; everything that its drivers raise becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from edgekit._lazy import require
from edgekit.errors import (
    EdgekitError,
    MissingDependencyError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
    UsageError,
)

PIECE_BYTES = 1 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXTRAS = {"s3": "edgekit[s3]", "gs": "edgekit[gs]", "gcs": "edgekit[gs]", "http": "aiohttp", "https": "aiohttp"}
_STAMPS = (
    "etag",
    "md5hash",
    "crc32c",
    "generation",
    "content-md5",
    "mtime",
    "lastmodified",
    "last-modified",
    "updated",
    "created",
)


def is_url(text: str) -> bool:
    """Whether `text` is a URL (`s3://bucket/models`), not a path."""
    return _URL.match(text) is not None


def shown(url: str) -> str:
    """`url` as messages show it: without a name, a password or a query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class Entry:
    """Something in a folder. `stamp` changes when it is replaced; "" where the storage does not tell."""

    name: str
    folder: bool
    stamp: str


class Bucket:
    """The folder or object that a URL names. Nothing is remembered: each call asks the storage."""

    def __init__(self, url: str) -> None:
        """Raises UsageError: no such protocol; MissingDependencyError: its driver is not installed."""
        self.url = shown(url)
        protocol = urlsplit(url).scheme.lower()
        fsspec = require("fsspec", why=f"read {protocol}:// URLs")
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            need = _EXTRAS.get(protocol)
            fix = f"Run: pip install '{need}'" if need else f"{error}."
            raise MissingDependencyError(f"The driver for {protocol}:// URLs is not installed. {fix}") from error
        except ValueError as error:
            raise UsageError(
                f"'{self.url}' cannot be used: {_first_line(error)}. Try s3://, gs:// or https://."
            ) from error
        except Exception as error:
            raise RemoteError(
                f"'{self.url}' cannot be opened ({_first_line(error)}). Check the credentials."
            ) from error
        self._root = str(root).rstrip("/")

    def entries(self, folder: str = "") -> list[Entry]:
        """What lies in `folder`, by name; nothing hidden.

        Raises:
            RemoteError: denied, vanished or out of reach.
        """
        path = self._path(folder)
        with self._asking(folder):
            found = self._files.ls(path, detail=True)
        out = {}
        for item in found:
            name = str(item["name"]).rstrip("/")
            if name == path.rstrip("/"):  # some storages have an object for the folder itself
                continue
            own = name.rpartition("/")[2]
            if own and own not in (".", "..") and not own.startswith("."):
                out[own] = Entry(own, item.get("type") == "directory", _stamp(item))
        return [out[name] for name in sorted(out)]

    def stamp(self, name: str) -> str:
        """What changes when the object `name` is replaced. Raises RemoteError."""
        with self._asking(name):
            return _stamp(self._files.info(self._path(name)))

    def read(self, name: str, most: int) -> bytes:
        """An object of at most `most` bytes, whole. Raises RemoteError, also for a larger one."""
        with self.open(name) as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise RemoteError(f"'{self._name(name)}' is larger than {most} bytes, which it should never be.")
        return data

    def open(self, name: str = "") -> BinaryIO:
        """A stream of the object `name`; its reading raises RemoteError too."""
        with self._asking(name):
            return io.BufferedReader(_Raw(self, name, self._files.open(self._path(name), "rb")), PIECE_BYTES)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Turn what drivers raise, each after its own fashion, into RemoteError."""
        try:
            yield
        except EdgekitError:
            raise
        except Exception as error:
            raise self._sentence(name, error) from error

    def _sentence(self, name: str, error: Exception) -> RemoteError:
        if isinstance(error, FileNotFoundError):
            error = _behind(error)
        what = self._name(name)
        code = str(getattr(error, "status", "") or getattr(error, "code", ""))
        if isinstance(error, FileNotFoundError) or code == "404":
            return RemoteMissingError(f"'{what}' is not there (any more). Check the address, or upload it again.")
        if isinstance(error, PermissionError) or code in ("401", "403"):
            return RemoteDeniedError(f"'{what}' may not be read: access was denied. Check the credentials' rights.")
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return RemoteError(f"'{what}' needs credentials and there are none. Set those of its storage.")
        return RemoteError(f"'{what}' cannot be read ({_first_line(error)}). Check the network and the address.")


class _Raw(io.RawIOBase):
    """A driver's stream whose errors are sentences."""

    def __init__(self, bucket: Bucket, name: str, stream: Any) -> None:
        self._bucket, self._name, self._stream = bucket, name, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._bucket._asking(self._name):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _behind(error: FileNotFoundError) -> Exception:
    """What was really wrong: over HTTP fsspec calls everything missing that it could not ask about."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return cause if hasattr(cause, "status") or isinstance(cause, OSError) else error


def _stamp(item: Mapping[str, Any]) -> str:
    """What of a listing tells one content of an object from the next."""
    told = {key.lower(): value for key, value in item.items()}
    stamps = [f"{key}={told[key]}" for key in _STAMPS if told.get(key) is not None]
    return " ".join([*stamps, f"size={told.get('size')}"]) if stamps else ""


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].strip()
    return text[:200] or type(error).__name__
