"""Models that are served: opened from packages, warmed, self-tested, and found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.manifest import Variant
from edgekit.package import MANIFEST, Package
from edgekit.runtime.select import choose, open_session
from edgekit.runtime.session import Session
from edgekit.serve.messages import RequestError
from edgekit.serve.reader import RequestReader
from edgekit.serve.selftest import self_test
from edgekit.serve.stats import Stats
from edgekit.serve.worker import INLINE_S, QUEUE_LIMIT, Cost, Worker, measure
from edgekit.tensors import Array, Feed, dtype_of, take_samples

SMALL_MODEL_BYTES = 1_000_000
"""A model file below this is tried on one thread first: if a run is short, more threads only slow it down."""

PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_rtx"}


class Model:
    """One served model: a session with its name, and what requests may leave out.

    `sample` is a feed that the model is warmed and measured with; without one, every run goes to the model's thread.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        version: str = "1",
        reason: str = "given",
        platform: str = "onnxruntime_onnx",
        labels: Sequence[str] = (),
        defaults: Mapping[str, Array] | None = None,
        states: Mapping[str, str] | None = None,
        sample: Feed | None = None,
        cost: Cost | None = None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self.session = session
        self.name, self.version = name, version
        self.reason, self.platform = reason, platform
        self.labels = tuple(labels)
        self.defaults = dict(defaults or {})
        self.states = dict(states or {})
        self.inputs, self.outputs = session.inputs, session.outputs
        self.input_specs = {s.name: s for s in self.inputs}
        self.output_specs = {s.name: s for s in self.outputs}
        self.datatypes = {s.name: dtype_of(s.dtype).oip for s in self.outputs}
        self.reader = RequestReader(self.input_specs)
        self.stats = Stats()
        if cost is None and sample is not None:
            cost = measure(session, sample)
        self.worker = Worker(session, cost=cost, queue_limit=queue_limit)

    def close(self) -> None:
        """Finish what waits, and release the model."""
        self.worker.close()

    def __str__(self) -> str:
        place = "runs where requests are parsed" if self.worker.inline else "runs on its own thread"
        return f"{self.name}: {self.session.variant} ({self.reason}), {self.session.device}, {place}"


def model_from_package(package: Package, *, variant: str | None = None, threads: int | None = None) -> Model:
    """Open the best variant of `package` (or `variant`), warm it and test it against the package's samples.

    Raises:
        UsageError: no such variant, or none that runs here.
        IntegrityError: a file of the package changed.
        CheckError: the model's outputs are far from the stored ones.
    """
    choice = choose(package, variant)
    samples = package.samples() if package.manifest.samples is not None else None
    if samples is not None:
        samples = replace(samples, inputs={**package.defaults(), **samples.inputs})
    session, cost = _open(package, choice.variant, threads, samples.inputs if samples else None)
    reason = choice.reason
    try:
        if samples is None:
            reason += "; not self-tested: the package has no samples"
        else:
            self_test(session, samples, precision=choice.variant.precision, name=package.path.name)
    except BaseException:
        session.close()
        raise
    return Model(
        session,
        name=package.name,
        version=package.manifest.version,
        reason=reason,
        platform=PLATFORMS.get(choice.variant.format, choice.variant.format),
        labels=package.labels(),
        defaults=package.defaults(),
        states=package.manifest.states,
        cost=cost,
    )


def _open(package: Package, variant: Variant, threads: int | None, inputs: Feed | None) -> tuple[Session, Cost | None]:
    """The session, and what a run of one of its samples costs."""
    if inputs is None:
        return open_session(package, variant=variant.id, threads=threads), None
    one_first = threads is None and variant.bytes < SMALL_MODEL_BYTES
    session = open_session(package, variant=variant.id, threads=1 if one_first else threads)
    sample = take_samples(inputs, session.inputs, 0, 1, session.inputs)
    try:
        cost = measure(session, sample)
        if one_first and cost.latency_s > INLINE_S:
            session.close()
            session = open_session(package, variant=variant.id, threads=threads)
            cost = measure(session, sample)
    except BaseException:
        session.close()
        raise
    return session, cost


def package_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The package folders that `paths` name: packages themselves, and folders that hold packages.

    Raises:
        UsageError: a folder holds no package.
        PackageError: raised later by `Package.open` for what is no package at all.
    """
    out: list[Path] = []
    for given in map(Path, paths):
        if not given.is_dir() or (given / MANIFEST).exists() or given.suffix == ".edge":
            out.append(given)
            continue
        found = sorted(p for p in given.glob("*.edge") if p.is_dir() and not p.name.startswith("."))
        if not found:
            raise UsageError(f"Folder '{given}' holds no package (NAME.edge). Make one with: edgekit export RECIPE")
        out += found
    return out


def load_models(
    paths: Iterable[str | Path],
    *,
    variant: str | None = None,
    threads: int | None = None,
    loaded: Callable[[Model], None] = lambda _model: None,
) -> list[Model]:
    """Every package of `paths`, ready to serve; `loaded` hears of each.

    Raises:
        UsageError: two packages have one name, or a folder is empty.
        PackageError, IntegrityError, CheckError, ...: a package cannot be served; none is then.
    """
    packages: dict[str, Package] = {}
    for folder in package_folders(paths):
        package = Package.open(folder)
        if package.name in packages:
            first = packages[package.name].path
            raise UsageError(
                f"'{first}' and '{package.path}' are both named '{package.name}'; a server tells models apart by name. "
                "Leave one out."
            )
        packages[package.name] = package
    models: list[Model] = []
    try:
        for package in packages.values():
            models.append(model_from_package(package, variant=variant, threads=threads))
            loaded(models[-1])
    except BaseException:
        for model in models:
            model.close()
        raise
    return models


class Repository:
    """The models by name."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            if model.name in self._models:
                raise UsageError(f"Two models are named '{model.name}'; a server tells models apart by name.")
            self._models[model.name] = model

    def models(self) -> tuple[Model, ...]:
        """All models, in the order they were given."""
        return tuple(self._models.values())

    def find(self, name: str, version: str = "") -> Model:
        """The model called `name`, in `version` if one is named. Raises RequestError 404, saying what there is."""
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models) or "none"
            raise RequestError(404, f"Model '{name}' is not served here; this server has {known}.")
        if version and version != model.version:
            raise RequestError(404, f"Model '{name}' has no version '{version}' here; it has '{model.version}'.")
        return model

    def close(self) -> None:
        """Release every model."""
        for model in self._models.values():
            model.close()
