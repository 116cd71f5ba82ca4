"""The packages on disk behind a server: found, chosen by version, loaded, and watched while it serves.

A package that was added or replaced is loaded, warmed and tested beside the old one; only then do requests go to it,
and those in flight finish on the old one. One that cannot be loaded changes nothing but the index.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from edgekit.errors import EdgekitError, UsageError
from edgekit.package import MANIFEST, Package
from edgekit.serve.changes import Signature, signature_of
from edgekit.serve.loading import model_from_package, opened, refuse_if_signed_only
from edgekit.serve.messages import RequestError
from edgekit.serve.model import Model
from edgekit.serve.options import PIPELINE_SUFFIX, ModelOptions, model_options
from edgekit.serve.repository import LOADING, UNAVAILABLE, chosen_versions, version_order

if TYPE_CHECKING:
    from edgekit.serve.pipeline import PipelineFile
    from edgekit.signature import TrustedKeys

LOGGER = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, str]
Given: TypeAlias = "Mapping[str, Any] | None"
Answer: TypeAlias = Callable[["Exception | None"], None]


@dataclass(frozen=True)
class Source:
    """One package or pipeline on disk: what it is called, and a signature that changes with its files."""

    path: Path
    name: str
    version: str
    signature: Signature
    pipeline: PipelineFile | None = None

    @property
    def key(self) -> Key:
        """Name and version."""
        return self.name, self.version


class Keeper(Protocol):
    """What a library tells of its models: all calls are made on the server's thread (`App` is one)."""

    def switch(self, model: Model) -> None:
        """Serve `model`, in place of the one with its name and version."""
        ...

    def withdraw(self, name: str, version: str, reason: str, *, forget: bool = False) -> None:
        """Serve a model no longer."""
        ...

    def note(self, name: str, version: str, state: str, reason: str) -> None:
        """Say what becomes of a model."""
        ...


def package_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The packages and pipelines that `paths` name: those themselves, and folders that hold them.

    Raises:
        UsageError: a folder holds none.
        PackageError: raised later by `Package.open` for what is no package at all.
    """
    out: list[Path] = []
    for given in map(Path, paths):
        if not given.is_dir() or (given / MANIFEST).exists() or given.suffix == ".edge":
            out.append(given)
            continue
        found = _in_folder(given)
        if not found:
            raise UsageError(f"Folder '{given}' holds no package (NAME.edge). Make one with: edgekit export RECIPE")
        out += found
    return out


def _in_folder(folder: Path) -> list[Path]:
    packages = (p for pattern in ("*.edge", "*/*.edge") for p in folder.glob(pattern) if p.is_dir())
    files = folder.glob(f"*{PIPELINE_SUFFIX}")
    return sorted(p for p in (*packages, *files) if not any(part.startswith(".") for part in p.parts[-2:]))


class Library:
    """The packages under `paths`. `given`: options for all models, `otherwise`: where nothing else is said.

    `load_all` loads at the start; `start` watches and takes orders on a thread of its own. With `trust`, only packages
    that its keys signed are loaded.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        given: Given = None,
        otherwise: Given = None,
        trust: TrustedKeys | None = None,
    ) -> None:
        self._paths = [Path(p) for p in paths]
        self._trust = trust
        self._given, self._otherwise = dict(given or {}), otherwise
        self._extra: dict[str, Mapping[str, Any]] = {}
        self._sources: dict[Path, Source] = {}
        self._loaded: dict[Key, Source] = {}
        self._models: dict[Key, Model] = {}
        self._failed: dict[Path, Signature] = {}
        self._passed_over: dict[Path, Signature] = {}
        self._unloaded: set[str] = set()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tell: Callable[..., None] = lambda *_: None
        self._keeper: Keeper | None = None

    def load_all(self, loaded: Callable[[Model], None] = lambda _model: None) -> list[Model]:
        """Every model, ready to serve; `loaded` hears of each.

        Raises:
            UsageError: two packages have one name and version, or a folder is empty.
            PackageError, IntegrityError, CheckError, ...: a package cannot be served; none is then.
        """
        for path in package_folders(self._paths):
            source = _source(path)
            twin = next((s for s in self._sources.values() if s.key == source.key), None)
            if twin is not None:
                raise UsageError(
                    f"'{twin.path}' and '{source.path}' are both named '{source.name}' in version '{source.version}'; "
                    "a server tells models apart by name. Leave one out."
                )
            self._sources[path] = source
        try:
            for source in self._wanted():
                loaded(self._load(source))
        except BaseException:
            for model in self._models.values():
                model.close()
            raise
        return list(self._models.values())

    def start(self, keeper: Keeper, post: Callable[..., Any], *, watch_s: float | None) -> None:
        """Take orders, and look every `watch_s` seconds (None: never) for what changed on disk.

        `post` calls a function on the server's thread.
        """
        self._keeper = keeper
        self._tell = post
        self._thread = threading.Thread(target=self._run, args=(watch_s,), name="edgekit-loader", daemon=True)
        self._thread.start()

    def load(self, name: str, extra: Mapping[str, Any] | None, answer: Answer) -> None:
        """Load or reload the model called `name` from disk, with options of this request; `answer` hears the outcome.

        Options stay until the next load of the model. On failure the model that was served is served on.
        """
        self._orders.put(partial(self._ordered, partial(self._load_now, name, extra), answer))

    def unload(self, name: str, answer: Answer, *, dependents: bool = False) -> None:
        """Serve `name` no longer, until it is loaded again; with `dependents`, pipelines that run it neither."""
        self._orders.put(partial(self._ordered, partial(self._unload_now, name, dependents), answer))

    def reload_keys(self) -> None:
        """Read the keys of signatures again, and try what was refused again. Raises UsageError: nothing changes."""
        if self._trust is not None:
            self._trust.reload()
            self._orders.put(self._failed.clear)

    def extra_of(self, name: str) -> dict[str, Any]:
        """The options that the last load of `name` on request came with."""
        return dict(self._extra.get(name) or {})

    def close(self) -> None:
        """End the thread once what it does is done."""
        self._orders.put(None)

    def poll(self) -> None:
        """Look at the disk once, and load, replace and withdraw what changed."""
        self._scan()
        wanted = self._wanted(patient=True)
        for source in wanted:
            have = self._loaded.get(source.key)
            if have is not None and have.signature == source.signature:
                if self._failed.pop(source.path, None) is not None:  # what was wrong was taken back
                    self._tell_keeper("note", *source.key, LOADING, "")
                continue
            if self._failed.get(source.path) == source.signature:
                continue
            self._try(source)
        self._withdraw_all_but(wanted)

    def _run(self, watch_s: float | None) -> None:
        while True:
            try:
                order = self._orders.get(timeout=watch_s)
            except queue.Empty:
                order = self.poll
            if order is None:
                return
            try:
                order()
            except RuntimeError:  # the server's loop is closed
                return
            except Exception:
                LOGGER.exception("looking for changed packages failed; it is tried again")

    def _ordered(self, work: Callable[[], None], answer: Answer) -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as failure:
            error = failure
        self._tell(answer, error)

    def _load_now(self, name: str, extra: Mapping[str, Any] | None) -> None:
        self._scan()
        found = [s for s in self._sources.values() if s.name == name]
        if not found:
            known = ", ".join(sorted({s.name for s in self._sources.values()})) or "none"
            raise RequestError(404, f"Model '{name}' is not among this server's packages, which are {known}.")
        before, was_unloaded = self._extra.get(name), name in self._unloaded
        self._extra[name] = dict(extra or {})
        self._unloaded.discard(name)
        try:
            for source in [s for s in self._wanted() if s.name == name]:
                self._replace(source)
        except Exception as error:
            self._extra[name] = before or {}
            if was_unloaded:
                self._unloaded.add(name)
            if isinstance(error, EdgekitError) and not isinstance(error, RequestError):
                raise RequestError(400, f"Model '{name}' was not loaded: {error}") from error
            raise
        self._withdraw_all_but(self._wanted())

    def _unload_now(self, name: str, dependents: bool) -> None:
        if not any(key[0] == name for key in self._loaded):
            raise RequestError(404, f"Model '{name}' is not loaded.")
        names = [name]
        if dependents:
            names += [s.name for s in self._loaded.values() if s.pipeline is not None and name in s.pipeline.models]
        self._unloaded.update(names)
        for key in [k for k in self._loaded if k[0] in names]:
            del self._loaded[key]
            self._models.pop(key)
            self._tell_keeper("withdraw", *key, "unloaded")

    def _scan(self) -> None:
        """Bring `_sources` up to what is on disk. A package that cannot be opened (now) keeps its place."""
        found: dict[Path, Source] = {}
        for given in self._paths:
            repository = given.is_dir() and not (given / MANIFEST).exists() and given.suffix != ".edge"
            for path in _in_folder(given) if repository else [given] if given.exists() else []:
                known = self._sources.get(path)
                signature = signature_of(path)
                if known is not None and known.signature == signature:
                    found[path] = known
                    continue
                try:
                    source = _source(path)
                except EdgekitError as error:
                    if known is not None:
                        found[path] = known
                    self._pass_over(path, signature, str(error))
                    continue
                twin = next((s for s in found.values() if s.key == source.key), None)
                if twin is None:
                    found[path] = source
                else:
                    self._pass_over(path, signature, f"'{twin.path}' has its name and version")
        self._sources = found

    def _pass_over(self, path: Path, signature: Signature, reason: str) -> None:
        """Say once that a package cannot be served as it is."""
        if self._passed_over.get(path) != signature:
            self._passed_over[path] = signature
            LOGGER.warning("'%s' is not served: %s", path, reason)

    def _wanted(self, *, patient: bool = False) -> list[Source]:
        """The sources that should be served: packages as found, pipelines after them.

        If the options of a model cannot be read, a `patient` call goes on with the versions that are served.
        """
        by_name: dict[str, list[Source]] = {}
        for source in self._sources.values():
            if source.name not in self._unloaded:
                by_name.setdefault(source.name, []).append(source)
        out: list[Source] = []
        for name, sources in by_name.items():
            try:
                out += chosen_versions(sources, self._options(sources[0].path, name).versions)
            except UsageError:
                if not patient:
                    raise
                out += [s for s in sources if s.key in self._loaded] or chosen_versions(sources, "latest")
        return sorted(out, key=lambda s: s.pipeline is not None)

    def _options(self, path: Path, name: str) -> ModelOptions:
        extra = self._extra.get(name)
        return model_options(path, name, given=self._given, extra=extra, otherwise=self._otherwise)

    def _load(self, source: Source) -> Model:
        options = self._options(source.path, source.name)
        if source.pipeline is not None:
            from edgekit.serve.pipeline import pipeline_model

            refuse_if_signed_only(source.path, self._trust)
            model = pipeline_model(
                source.pipeline, self._models_by_name(), name=source.name, options=options, path=source.path
            )
        else:
            model = model_from_package(opened(source.path, self._trust), options=options)
        self._loaded[source.key], self._models[source.key] = source, model
        self._failed.pop(source.path, None)
        return model

    def _models_by_name(self) -> dict[str, Model]:
        """The latest version of each loaded model."""
        return {k[0]: self._models[k] for k in sorted(self._models, key=lambda k: version_order(k[1]))}

    def _replace(self, source: Source) -> None:
        self._tell_keeper("note", *source.key, LOADING, "")
        model = self._load(source)
        LOGGER.info("loaded %s", model)
        self._tell_keeper("switch", model)
        if source.pipeline is None:
            for other in [s for s in self._loaded.values() if s.pipeline is not None]:
                if other.pipeline is not None and source.name in other.pipeline.models:
                    self._try(other)

    def _try(self, source: Source) -> None:
        try:
            self._replace(source)
        except Exception as error:
            self._failed[source.path] = source.signature
            self._refused(source, error)

    def _refused(self, source: Source, error: Exception) -> None:
        reason = f"not loaded: {error}" if isinstance(error, EdgekitError) else f"not loaded: {type(error).__name__}"
        if source.key in self._loaded:
            reason = f"served as it was; what replaced it on disk was {reason}"
        LOGGER.warning("'%s': %s", source.path, reason)
        self._tell_keeper("note", *source.key, UNAVAILABLE, reason)

    def _withdraw_all_but(self, wanted: Sequence[Source]) -> None:
        """Unload what is not wanted; the last good version of a model stays while its successor fails."""
        keys = {s.key for s in wanted}
        names = {s.name for s in wanted}
        for key in [k for k in self._loaded if k not in keys]:
            succeeded = any(other[0] == key[0] and other in keys for other in self._loaded)
            if key[0] in names and not succeeded:
                continue
            del self._loaded[key]
            self._models.pop(key)
            self._tell_keeper("withdraw", *key, "its package is gone", forget=True)

    def _tell_keeper(self, call: str, *arguments: Any, **named: Any) -> None:
        if self._keeper is not None:
            self._tell(partial(getattr(self._keeper, call), *arguments, **named))


def _source(path: Path) -> Source:
    """Raises PackageError, IntegrityError or UsageError: it cannot be opened."""
    signature = signature_of(path)  # before it is read: a change meanwhile is then seen later
    if path.name.endswith(PIPELINE_SUFFIX):
        from edgekit.serve.pipeline import read_pipeline  # only where there is one: start-up is short

        file = read_pipeline(path)
        return Source(path, file.name or path.name.removesuffix(PIPELINE_SUFFIX), file.version, signature, file)
    package = Package.open(path)
    return Source(path, package.name, package.manifest.version, signature)


def load_models(
    paths: Iterable[str | Path],
    *,
    given: Mapping[str, Any] | None = None,
    loaded: Callable[[Model], None] = lambda _model: None,
) -> list[Model]:
    """Every package of `paths`, ready to serve; see `Library.load_all` for the errors."""
    return Library(paths, given=given).load_all(loaded)
