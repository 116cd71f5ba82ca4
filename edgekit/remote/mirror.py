"""A local copy of the packages under a URL, kept in step with it: whole, checked, and there when the storage is not.

Files are kept by their SHA-256, once for all packages and versions that hold them, and are linked into folders that
look like the storage's own. A package is exchanged for its next version at once, after every byte of that was checked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgekit._files import exchange, inside, storage, sweep_stages, sync, write_atomic, write_synced
from edgekit.errors import (
    EdgekitError,
    IntegrityError,
    PackageError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
)
from edgekit.manifest import File, Manifest, decode
from edgekit.package import MANIFEST, SIGNATURE
from edgekit.remote.blobs import Blobs
from edgekit.remote.bucket import Bucket, Entry

LOGGER = logging.getLogger(__name__)

PACKAGE, ARCHIVES, OPTIONS = ".edge", (".edge.tar", ".edge.tar.gz"), ".toml"
MANIFEST_BYTES, OPTION_BYTES = 64 << 20, 1 << 20

LARGE_BYTES = 50_000_000
"""What takes a while is announced."""

Tell = Callable[[str], None]
"""Hears, in a line, of each package that was fetched, and before that of each that is large."""


def cache_folder() -> Path:
    """Where fetched packages lie: `EDGEKIT_CACHE`, else the user's cache folder."""
    given = os.environ.get("EDGEKIT_CACHE")
    if given:
        return Path(given) / "remote"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit" / "remote"


class Mirror:
    """The local copy of what `url` names: a package, an archive of one, or a folder of both, up to one folder deep.

    `path` is where commands find it. Several processes may keep the same copy in step.
    """

    def __init__(self, url: str, *, cache: Path | None = None, tell: Tell = lambda _line: None) -> None:
        """Raises UsageError: no such protocol; MissingDependencyError: its driver is not installed."""
        self._bucket = Bucket(url)
        self.url = self._bucket.url
        self._tell = tell
        cache = cache or cache_folder()
        name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
        self._single = name if name.endswith((PACKAGE, *ARCHIVES)) else ""
        self._folder = cache / "mirrors" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:20]
        self.path = self._folder / _package_name(self._single) if self._single else self._folder
        self._blobs = Blobs(cache / "blobs")
        self._bad: dict[str, tuple[str, str]] = {}

    def start(self) -> None:
        """Bring the copy up to date for the first time. Where that fails, what was fetched before will do.

        Raises:
            EdgekitError: it fails, and there is nothing from before.
        """
        for name, error in self.sync().items():
            local = self._folder / _package_name(name) if name else self.path
            if not local.exists() or (local == self._folder and not any(local.iterdir())):
                raise error
            LOGGER.warning("%s What was fetched before is used.", error)

    def sync(self) -> dict[str, EdgekitError]:
        """Bring the copy up to date. Returns what could not be: its name ("" for all) -> why; it is as it was."""
        problems: dict[str, EdgekitError] = {}
        try:
            with storage(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            found = {self._single: Entry("", False, "")} if self._single else self._listed()
        except EdgekitError as error:
            return {"": error}
        for name, entry in found.items():
            try:
                self._bring(name, entry)
            except EdgekitError as error:
                problems[name] = error
        self._drop_others({_package_name(name) for name in found})
        self._blobs.prune()
        return problems

    def _listed(self) -> dict[str, Entry]:
        """What to fetch, by its path under the URL. Raises RemoteError: out of reach, or no package in it."""
        out: dict[str, Entry] = {}
        folders = []
        for entry in self._bucket.entries():
            if entry.name.endswith((PACKAGE, *ARCHIVES, OPTIONS)):
                out[entry.name] = entry
            elif entry.folder:
                folders.append(entry.name)
        for folder in folders:
            for entry in self._bucket.entries(folder):
                if entry.name.endswith((PACKAGE, *ARCHIVES, OPTIONS)):
                    out[f"{folder}/{entry.name}"] = entry
        if not any(name.endswith((PACKAGE, *ARCHIVES)) for name in out):
            raise RemoteError(
                f"'{self.url}' holds no package (NAME.edge or NAME.edge.tar). Upload one, then try again."
            )
        return out

    def _bring(self, name: str, entry: Entry) -> None:
        local = self._folder / inside(_package_name(name))
        remote = "" if self._single else name
        with storage(local):
            local.parent.mkdir(exist_ok=True)
        if name.endswith(OPTIONS):
            data = self._bucket.read(remote, OPTION_BYTES)
            if not local.is_file() or local.read_bytes() != data:
                with storage(local):
                    write_atomic(local, data)
        elif name.endswith(ARCHIVES):
            self._bring_archive(remote, local, entry)
        else:
            self._bring_package(remote, local)

    def _bring_archive(self, remote: str, local: Path, entry: Entry) -> None:
        from edgekit.deliver.unpack import unpack

        note = local.with_name(f".{local.name}.stamp")
        stamp = entry.stamp or self._bucket.stamp(remote)
        if stamp and local.is_dir() and note.is_file() and note.read_text() == stamp:
            return
        self._check_not_bad(remote, stamp)
        try:
            with self._bucket.open(remote) as stream:
                unpack(Path(remote or self._single), local, stream=stream, force=True)
        except PackageError as error:
            self._bad[remote] = stamp, str(error)
            raise
        with storage(note):
            write_atomic(note, stamp.encode())
        self._tell(f"fetched {self._named(remote)}")

    def _bring_package(self, remote: str, local: Path) -> None:
        heads, files = self._heads(f"{remote}/" if remote else "")
        if self._is_there(local, heads, files):
            return
        for name in files:
            path = f"{remote}/{name}" if remote else name
            if path in self._bad:
                self._check_not_bad(path, self._bucket.stamp(path))
        missing = sum(file.bytes for file in files.values() if not self._blobs.has(file))
        if missing >= LARGE_BYTES:
            self._tell(f"fetching {missing / 1e6:.0f} MB of {self._named(remote)}")
        for name, file in files.items():
            path = f"{remote}/{name}" if remote else name
            try:
                self._blobs.fetch(file, partial(self._bucket.open, path))
            except IntegrityError as error:
                self._bad[path] = self._bucket.stamp(path), str(error)
                raise
        stage = local.with_name(f".{local.name}.staging-{os.getpid()}-fetch")
        with storage(local):
            sweep_stages(local)
            try:
                for name, file in files.items():
                    target = stage / inside(name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._blobs.place(file, target)
                for name, data in heads.items():
                    target = stage / inside(name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_synced(target, data)
                sync(stage)
                exchange(stage, local)
                sync(local.parent)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        self._tell(f"fetched {self._named(remote)}")

    def _check_not_bad(self, path: str, stamp: str) -> None:
        """Raise what was wrong with an object that is still the same, instead of reading all of it again."""
        before = self._bad.get(path)
        if before is not None and stamp and before[0] == stamp:
            raise IntegrityError(before[1])
        self._bad.pop(path, None)

    def _named(self, remote: str) -> str:
        return f"{self.url}/{remote}".rstrip("/")

    def _heads(self, prefix: str) -> tuple[dict[str, bytes], dict[str, File]]:
        """The manifests and the signature as they are in the storage, and every file that they vouch for."""

        def manifest_in(folder: str) -> Manifest:
            heads[folder + MANIFEST] = self._bucket.read(prefix + folder + MANIFEST, MANIFEST_BYTES)
            found = decode(heads[folder + MANIFEST], where=f"{self.url}/{prefix}{folder}".rstrip("/"))
            for file in found.all_files().values():
                inside(file.name)
                files[folder + file.name] = file
            return found

        heads: dict[str, bytes] = {}
        files: dict[str, File] = {}
        stages = manifest_in("").stages
        for stage in () if isinstance(stages, msgspec.UnsetType) else stages:
            manifest_in(f"{inside(stage.package)}/")
        with suppress(RemoteMissingError, RemoteDeniedError):  # where none may list, storages deny what is not there
            heads[SIGNATURE] = self._bucket.read(prefix + SIGNATURE, OPTION_BYTES)
        clash = next((n for n in files if n in heads), "")
        if clash:
            raise RemoteError(f"The manifest of '{self.url}/{prefix}' lists '{clash}', which is none of its files.")
        return heads, files

    def _is_there(self, local: Path, heads: Mapping[str, bytes], files: Mapping[str, File]) -> bool:
        """Whether the copy is this version, whole."""
        try:
            same = all((local / name).read_bytes() == data for name, data in heads.items())
            return (
                same
                and (SIGNATURE in heads) == (local / SIGNATURE).exists()
                and all(self._blobs.is_good(local / name, file) for name, file in files.items())
            )
        except OSError:
            return False

    def _drop_others(self, kept: set[str]) -> None:
        """Remove packages and options that are not in the storage any more."""
        if self._single:
            return
        for path in [*self._folder.glob("*"), *self._folder.glob("*/*")]:
            name = path.relative_to(self._folder).as_posix()
            if path.name.startswith(".") or not path.name.endswith((PACKAGE, OPTIONS)) or name in kept:
                continue
            if path.parent.suffix == PACKAGE:
                continue
            if path.is_dir():
                gone = path.with_name(f".{path.name}.staging-{os.getpid()}-gone")
                with suppress(OSError):
                    path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _package_name(name: str) -> str:
    """The folder of the package called `name` under a URL: archives are unpacked."""
    for suffix in ARCHIVES:
        if name.endswith(suffix):
            return name[: -len(suffix)] + PACKAGE
    return name


def fetch(url: str, *, cache: Path | None = None, tell: Tell = lambda _line: None) -> Path:
    """The package, or folder of packages, that `url` names, as a local path. Raises EdgekitError."""
    mirror = Mirror(url, cache=cache, tell=tell)
    mirror.start()
    return mirror.path
