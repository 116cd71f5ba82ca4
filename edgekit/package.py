"""The package: a directory `NAME.edge/` that every command reads or grows.

Reading is checked: a file is handed out only after its SHA-256 matched the manifest. Writing is one transaction:
the new content is staged beside the package (unchanged files as hard links) and the two directories are exchanged
in one rename, so that a killed command leaves the old package or the new one, whole.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from edgekit._files import (
    exchange,
    inside,
    storage,
    storage_error,
    sweep_stages,
    sync,
    uninterrupted,
    write_atomic,
    write_synced,
)
from edgekit.errors import IntegrityError, PackageError, UsageError
from edgekit.manifest import File, Manifest, Stage, Variant, decode, encode
from edgekit.tensors import Array, Tensors, numpy_dtype

MANIFEST = "manifest.json"
SAMPLES = "samples.npz"
LABELS = "labels.txt"
CALIBRATION = "calibration.json"
REPORTS, SIGNATURE = "reports", "signature.json"

_stages = itertools.count()


@dataclass(frozen=True)
class Samples:
    """A few real inputs with the reference's outputs, batched along the first dimension."""

    inputs: Tensors
    outputs: Tensors
    count: int
    source: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Package:
    """An opened package. Cheap to open: only the manifest is read. `pinned`: digests that its stages' must have."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.pinned: Mapping[str, str] = {}
        self._checked: dict[str, tuple[int, int, int]] = {}

    @classmethod
    def open(cls, path: str | Path) -> Package:
        """Open the package at `path`.

        Raises:
            PackageError: there is no package, or its manifest cannot be read by this edgekit.
            IntegrityError: the manifest was changed.
        """
        where = Path(path)
        if not where.exists():
            raise PackageError(f"Package '{where}' does not exist. Make one with: edgekit export RECIPE -o {where}")
        try:
            data = (where / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise PackageError(
                f"'{where}' is not an edgekit package (it has no {MANIFEST}). "
                "Make one with: edgekit export RECIPE -o NAME.edge"
            ) from None
        except OSError as error:
            raise PackageError(f"'{where}' cannot be read ({error.strerror}).") from error
        return cls(where.resolve(), decode(data, where=where.name))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages in the order they run; empty for a package of one model."""
        stages = self.manifest.stages
        return () if isinstance(stages, msgspec.UnsetType) else tuple(s.name for s in stages)

    def stages(self) -> tuple[tuple[Stage, Package], ...]:
        """Each stage with its package, opened; empty for a package of one model.

        Raises:
            PackageError: a stage is missing.
            IntegrityError: a stage was changed, or replaced by another model.
        """
        found = self.manifest.stages
        if isinstance(found, msgspec.UnsetType):
            return ()
        opened = []
        for stage in found:
            package = Package.open(self.path / inside(stage.package))
            pinned = self.pinned.get(stage.package, package.manifest.digest)
            if package.reference.sha256 != stage.reference or package.manifest.digest != pinned:
                raise IntegrityError(
                    f"Stage '{stage.name}' of '{self.path.name}' is not the model that was exported with it. "
                    "Restore it, or export all stages again."
                )
            opened.append((stage, package))
        return tuple(opened)

    def require_one_model(self) -> None:
        """Raise UsageError for a package of stages: the stages have variants, it has none."""
        found = self.manifest.stages
        if not isinstance(found, msgspec.UnsetType):
            raise UsageError(
                f"'{self.path.name}' is made of stages ({', '.join(self.stage_names)}), each a package of its own. "
                f"Name one of them: {self.path.name}/{found[0].package}"
            )

    def variant(self, variant_id: str) -> Variant:
        """The variant with that id. Raises UsageError, listing what there is."""
        self.require_one_model()
        for v in self.manifest.variants:
            if v.id == variant_id:
                return v
        known = ", ".join(v.id for v in self.manifest.variants)
        raise UsageError(f"'{self.path.name}' has no variant '{variant_id}'; it has {known}.")

    @property
    def reference(self) -> Variant:
        """The variant that all others are checked against: fp32 (or the first, for a model that has none).

        Raises UsageError for a package of stages.
        """
        self.require_one_model()
        return next((v for v in self.manifest.variants if v.id == "fp32"), self.manifest.variants[0])

    def file(self, name: str) -> Path:
        """The path of a file that the manifest vouches for, its digest checked.

        Raises:
            PackageError: the manifest does not know the file.
            IntegrityError: the file is missing or its bytes changed.
        """
        entry = self.manifest.all_files().get(name)
        if entry is None:
            raise PackageError(f"'{self.path.name}' has no file '{name}'.")
        path = self.path / inside(name)
        try:
            stat = path.stat()
            state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._checked.get(name) == state:
                return path
            same = stat.st_size == entry.bytes and sha256_of(path) == entry.sha256
        except OSError as error:
            raise IntegrityError(
                f"'{self.path.name}' lacks its file '{name}' ({error.strerror}). Restore it, or export again."
            ) from error
        if not same:
            raise IntegrityError(
                f"'{name}' in '{self.path.name}' was changed: its SHA-256 does not match the manifest. "
                "Restore it, or export again."
            )
        self._checked[name] = state
        return path

    def model_file(self, variant: Variant) -> Path:
        """The variant's model file, it and its external data checked. Raises IntegrityError."""
        for entry in variant.data:
            self.file(entry.name)
        return self.file(variant.file)

    def samples(self) -> Samples:
        """The package's samples. Raises PackageError if it holds none."""
        info = self.manifest.samples
        if info is None:
            raise PackageError(
                f"'{self.path.name}' holds no samples. Export again with a recipe that has samples, "
                "or with --samples FILE."
            )
        with np.load(self.file(SAMPLES), allow_pickle=False) as npz:
            arrays = {k: npz[k] for k in npz.files}
        inputs = {k.removeprefix("input/"): v for k, v in arrays.items() if k.startswith("input/")}
        outputs = {k.removeprefix("output/"): v for k, v in arrays.items() if k.startswith("output/")}
        return Samples(inputs, outputs, info.count, info.source)

    def labels(self) -> tuple[str, ...]:
        """Class names, or an empty tuple."""
        if LABELS not in self.manifest.all_files():
            return ()
        return tuple(self.file(LABELS).read_text(encoding="utf-8").splitlines())

    def defaults(self) -> Tensors:
        """Values of inputs that callers may leave out."""
        specs = {s.name: s for s in self.manifest.input_specs}
        return {k: np.asarray(v, numpy_dtype(specs[k].dtype)) for k, v in self.manifest.defaults.items()}

    def write_report(self, name: str, data: bytes) -> Path:
        """Write `reports/NAME` atomically; reports are results, not content, so the manifest does not list them.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.path / REPORTS / inside(name)
        with storage(path):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data)
        return path

    def edit(self) -> PackageWriter:
        """A transaction on this package: nothing changes until its `commit`.

        Raises UsageError for a package of stages: a stage is changed, not the whole.
        """
        self.require_one_model()
        return PackageWriter(self.path, before=self.manifest)


def create(path: str | Path, *, force: bool = False) -> PackageWriter:
    """A transaction that makes a new package at `path`; with `force` it replaces the one there.

    Raises:
        UsageError: `path` exists, and `force` is not given or it is something other than a package.
    """
    where = Path(path)
    if where.name in ("", ".", "..") or where.suffix != ".edge":
        raise UsageError(f"'{where}' is not a package name; expected NAME.edge, for example: -o model.edge")
    if where.exists() or where.is_symlink():
        if not force:
            raise UsageError(f"'{where}' exists. Choose another name, or replace it with --force.")
        if not (where / MANIFEST).is_file() and (not where.is_dir() or any(where.iterdir())):
            raise UsageError(f"'{where}' exists and is not a package, so --force does not replace it.")
    where = where.parent.resolve() / where.name
    return PackageWriter(where.resolve() if where.is_symlink() else where, before=None, replace=force)


class PackageWriter:
    """A staged change of a package. A context manager: leaving it without `commit` leaves no trace.

    with package.edit() as writer:
        save_model(writer.path("int8.onnx"))
        writer.put(writer.variant_of("int8.onnx", id="int8", ...))
        package = writer.commit()
    """

    def __init__(self, target: Path, *, before: Manifest | None, replace: bool = False) -> None:
        self.target = target
        self._replace = replace
        self._before = before
        self._variants: dict[str, Variant] = {v.id: v for v in before.variants} if before else {}
        self._files: dict[str, File] = {f.name: f for f in before.files} if before else {}
        self._stage = target.with_name(f".{target.name}.staging-{os.getpid()}-{next(_stages)}")
        self._fresh: set[str] = set()

    def __enter__(self) -> PackageWriter:
        with storage(self.target):
            sweep_stages(self.target)
            self._stage.mkdir(parents=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(self.target, error) from error

    def path(self, name: str) -> Path:
        """Where to write the new file `name`; it becomes part of the package at `commit`."""
        path = self._stage / inside(name)
        with storage(self.target):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._fresh.add(name)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Add a file with these bytes, listed in the manifest. Raises StorageError."""
        path = self.path(name)
        with storage(self.target):
            path.write_bytes(data)
        self._files[name] = self._entry(name)

    def write_samples(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Add samples.npz with these batched inputs and reference outputs. Raises StorageError."""
        named = [*((f"input/{k}", v) for k, v in inputs.items()), *((f"output/{k}", v) for k, v in outputs.items())]
        # numpy would pickle object arrays (strings), and reading refuses pickles
        arrays: dict[str, Any] = {k: v.astype(str) if v.dtype == object else v for k, v in named}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        self.write(SAMPLES, buffer.getvalue())

    def variant_of(self, file: str, **fields: Any) -> Variant:
        """A Variant for a model file already written to `path(file)`, its digests filled in.

        Files `<file>.data` and `<file>.data.*` beside it are taken as its external data.
        """
        entry = self._entry(file)
        names = sorted(p.name for p in self._stage.glob(f"{file}.data*") if p.is_file())
        self._fresh.update(names)
        data = tuple(self._entry(n) for n in names)
        size = entry.bytes + sum(d.bytes for d in data)
        return Variant(file=file, sha256=entry.sha256, bytes=size, data=data, **fields)

    def put(self, variant: Variant) -> None:
        """Add `variant`, replacing the one with its id."""
        self._variants[variant.id] = variant

    def remove(self, variant_id: str) -> None:
        """Drop a variant and its file."""
        self._variants.pop(variant_id, None)

    def commit(self, manifest: Manifest | None = None) -> Package:
        """Make the staged content the package, in one step, and return it.

        `manifest` gives the fields (needed for a new package); variants and files come from this writer.

        Raises:
            StorageError: no space or no permission; the package is as before.
            UsageError: another command changed the package meanwhile.
        """
        base = manifest or self._before
        if base is None:
            raise UsageError("A new package needs a manifest.")
        final = msgspec.structs.replace(
            base, variants=tuple(self._variants.values()), files=tuple(self._files.values())
        )
        data = encode(final)
        with storage(self.target):
            self._check_unchanged()
            if self._before is not None:
                self._link_unchanged(final)
            for name in final.all_files():
                sync(self._stage / name)
            write_synced(self._stage / MANIFEST, data)
            sync(self._stage)
            with uninterrupted():
                self._check_unchanged()
                exchange(self._stage, self.target)
            sync(self.target.parent)
        shutil.rmtree(self._stage, ignore_errors=True)
        return Package(self.target, decode(data, where=self.target.name))

    def _entry(self, name: str) -> File:
        path = self._stage / inside(name)
        return File(name=name, sha256=sha256_of(path), bytes=path.stat().st_size)

    def _link_unchanged(self, final: Manifest) -> None:
        wanted = set(final.all_files()) - self._fresh
        reports = self.target / REPORTS
        if reports.is_dir():
            wanted.update(f"{REPORTS}/{p.name}" for p in reports.iterdir() if p.is_file())
        wanted.update(p.name for p in self.target.glob(SIGNATURE))  # it holds no longer, but says who had signed
        for name in wanted:
            old, new = self.target / inside(name), self._stage / inside(name)
            new.parent.mkdir(parents=True, exist_ok=True)
            if new.exists():
                continue
            try:
                os.link(old, new)
            except FileNotFoundError:
                raise IntegrityError(f"'{self.target.name}' lacks its file '{name}'. Export again.") from None
            except OSError:  # a file system without hard links
                shutil.copy2(old, new)

    def _check_unchanged(self) -> None:
        if self._before is None:
            if self.target.exists() and not self._replace:
                raise UsageError(f"'{self.target}' was made by another command meanwhile; nothing was written.")
            return
        try:
            now: str | None = Package.open(self.target).manifest.digest
        except PackageError:
            now = None
        if now != self._before.digest:
            raise UsageError(
                f"'{self.target.name}' was changed by another command meanwhile; nothing was written. Run again."
            )
