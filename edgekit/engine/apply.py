"""Compiles variants of a package for targets and adds the engines, all in one transaction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import __version__
from edgekit._lazy import available
from edgekit.engine import cache
from edgekit.engine.build import Built, Step, build_engine
from edgekit.engine.conditions import conditions_resolved
from edgekit.engine.inspect import EngineLayers, EngineSummary, intended_precisions, summary_of
from edgekit.engine.options import BuildOptions, build_digest
from edgekit.engine.plugins import plugged_for, register, sm_of, with_stand_ins
from edgekit.engine.profiles import Profile
from edgekit.engine.request import (
    check_machine,
    check_target,
    fitting,
    module_for,
    profiles_of,
    resolve,
    sources_of,
)
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import UsageError
from edgekit.gpu import Gpu, this_gpu
from edgekit.graphs import load_model, save_model
from edgekit.manifest import Variant
from edgekit.package import Package, PackageWriter
from edgekit.targets import Target
from edgekit.trt_api import Kind

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, Step], None]
"""Takes the id of the engine that is being built, and how far it is."""


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of one run.

    Attributes:
        id: of the new variant; source: the ONNX variant that it was built from.
        target: the name that was asked for; sm: its compute capability; module: builder and release.
        reused: "" if it was built now, "package" or "cache" if an equal one was there.
        build_s: seconds that building took, now or when it was built.
        summary: counts over its layers; None where they are not known.
        plugins: the CUDA plugins inside ("edgekit::lstm").
        warnings: what the builder warned of, and which layers could have been plugins and are not.
    """

    id: str
    source: str
    target: str
    sm: int
    module: str
    file: str
    bytes: int
    reused: str
    build_s: float
    summary: EngineSummary | None
    plugins: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    source: Variant
    target: Target
    module: TrtModule
    options: BuildOptions
    digest: str
    gpu: str
    plugins: Mapping[str, str]
    remarks: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.source.id.removesuffix('-trt')}-sm{self.target.sm}-{self.module.tag}{self.options.suffix()}"

    @property
    def file(self) -> str:
        precision = self.source.id.removesuffix("-trt")
        return f"engines/sm{self.target.sm}-{self.module.tag}-{precision}{self.options.suffix()}.engine"

    @property
    def layers_file(self) -> str:
        return self.file.removesuffix(".engine") + ".layers.json"

    @property
    def timing_key(self) -> str:
        return f"{self.module.tag}-sm{self.target.sm}-{self.gpu.replace(' ', '-').lower()}"


def compile_package(
    package: Package,
    targets: Sequence[str],
    *,
    variants: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    options: BuildOptions | None = None,
    kind: Kind | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> tuple[Package, list[Compiled]]:
    """Engines of `variants` (default: those in `COMPILED` that the package has) for every target, added to `package`.

    Nothing is written unless all of them can be built. An equal engine that is in the package or in the cache is used
    as it is; `use_cache` False builds anew. A variant that was not named and that a target cannot run is left out, and
    `note` hears of it.

    Raises:
        UsageError: a target, variant, option or range of shapes that cannot be.
        MissingDependencyError: the TensorRT that a target needs is not installed.
        UnsupportedOperatorError, BackendError: see `build_engine`.
        KeyboardInterrupt: cancelled; the package is as before.
    """
    sources = sources_of(package, variants)
    wanted = options or BuildOptions()
    wanted = msgspec.structs.replace(wanted, profiles=profiles_of(package, profiles))
    gpu = this_gpu()
    jobs: dict[str, tuple[str, _Job]] = {}
    for name in dict.fromkeys(targets):
        target = resolve(name, gpu)
        module = module_for(target, kind, gpu)
        module.check(wanted)
        check_target(target, wanted)
        check_machine(module, gpu, wanted)
        for source in fitting(sources, target, name=name, named=bool(variants), note=note):
            job = _job(package, source, target, module, wanted, gpu)
            jobs.setdefault(job.id, (name, job))
    if not jobs:
        raise UsageError(f"No variant of '{package.path.name}' runs on {', '.join(targets)}. Name one with --variant.")
    with package.edit() as writer:
        made = [_make(package, writer, name, job, use_cache, progress) for name, job in jobs.values()]
        if all(c.reused == "package" for c in made):
            return package, made
        return writer.commit(), made


def _job(
    package: Package, source: Variant, target: Target, module: TrtModule, options: BuildOptions, gpu: Gpu | None
) -> _Job:
    own = "" if module.cross_compiles or gpu is None else gpu.name
    options = options if module.has_quick_plugins else msgspec.structs.replace(options, plugins=True)
    remarks: list[str] = []
    plugins = _plugins(package, source, target, module, options, note=remarks.append)
    digest = build_digest(
        options,
        model=[source.sha256, *(d.sha256 for d in source.data)],
        plugins=sorted(plugins.items()),
        module=[module.kind, module.version],
        target=[target.sm, own],
    )
    return _Job(source, target, module, options, digest, own, plugins, tuple(remarks))


def _make(
    package: Package, writer: PackageWriter, name: str, job: _Job, use_cache: bool, progress: Progress | None
) -> Compiled:
    there = next((v for v in package.manifest.variants if v.id == job.id), None)
    if use_cache and there is not None and there.settings.get("digest") == job.digest:
        package.file(there.file)
        return _compiled(name, job, there, "package", stored_layers(package, there))
    kept = cache.cached_engine(job.digest) if use_cache else None
    warnings: tuple[str, ...] = ()
    if kept is not None:
        data, found, build_s, reused = kept[0], kept[1].found, kept[1].build_s, "cache"
    else:
        built, intended = _build(package, job, progress)
        data, build_s, reused, warnings = built.data, built.build_s, "", (*job.remarks, *built.warnings)
        found = EngineLayers(layers=built.layers, intended=intended)
        cache.keep_engine(job.digest, data, build_s=build_s, found=found)
        if built.timing_cache is not None:
            cache.keep_timing_cache(job.timing_key, built.timing_cache)
    writer.path(job.file).write_bytes(data)
    writer.write(job.layers_file, msgspec.json.encode(found))
    variant = writer.variant_of(
        job.file,
        id=job.id,
        precision=job.source.precision.removesuffix("-trt"),
        format=job.module.kind,
        target=f"sm{job.target.sm}-{job.module.tag}",
        plugins=tuple(sorted(job.plugins)),
        settings=_settings(package, name, job, build_s),
    )
    writer.put(variant)
    return _compiled(name, job, variant, reused, found, warnings)


def _build(package: Package, job: _Job, progress: Progress | None) -> tuple[Built, dict[str, str]]:
    def on_step(step: Step) -> None:
        if progress is not None:
            progress(job.id, step)

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = package.model_file(job.source)
        model = load_model(path) if available("onnx") else None
        if model is not None:
            model, changed = _graph_for(model, job)
            if changed:
                path = Path(folder) / path.name
                save_model(model, path)
        if job.plugins:
            register(job.module, sm=sm_of(job.target.sm, job.options))
        built = build_engine(
            path,
            module=job.module,
            sm=job.target.sm,
            options=job.options,
            name=job.source.id,
            plugins=bool(job.plugins),
            timing_cache=cache.timing_cache(job.timing_key),
            on_step=on_step,
        )
    return built, {} if model is None else intended_precisions(model)


def _graph_for(model: onnx.ModelProto, job: _Job) -> tuple[onnx.ModelProto, bool]:
    """The graph that is built of a variant for a target, and whether it differs from the variant's own."""
    model, resolved = _resolved(model, job.options)
    if job.module.kind == "tensorrt-rtx":
        model, gone = with_stand_ins(model)
        return model, resolved or bool(gone)
    if not job.plugins:
        return model, resolved
    made = plugged_for(model, job.module, sm=job.target.sm, options=job.options)
    return (model, resolved) if made is None else (made.model, True)


def _resolved(model: onnx.ModelProto, options: BuildOptions) -> tuple[onnx.ModelProto, bool]:
    if not available("onnxruntime"):
        return model, False
    model, resolved = conditions_resolved(model, options.profiles)
    return model, resolved > 0


def _plugins(
    package: Package,
    source: Variant,
    target: Target,
    module: TrtModule,
    options: BuildOptions,
    *,
    note: Callable[[str], None],
) -> dict[str, str]:
    """The plugins that the engine of a variant will hold, with the digests of their sources; `note` hears which layers
    could be plugins and are not."""
    if not (options.plugins and module.has_quick_plugins):
        return {}
    if not available("onnx"):
        note("no layer becomes a plugin: that takes onnx. Run: pip install 'edgekit[export]'")
        return {}
    model, _ = _resolved(load_model(package.model_file(source)), options)
    made = plugged_for(model, module, sm=target.sm, options=options, note=note)
    return {} if made is None else made.digests


def _settings(package: Package, name: str, job: _Job, build_s: float) -> dict[str, Any]:
    out: dict[str, Any] = {
        "source": job.source.id,
        "source_sha256": job.source.sha256,
        "module": job.module.kind,
        "version": job.module.version,
        "asked_for": name,
        "profiles": [{n: msgspec.to_builtins(r) for n, r in p.items()} for p in job.options.profiles],
        "inputs": [str(s) for s in package.manifest.input_specs],
        "outputs": [str(s) for s in package.manifest.output_specs],
        "options": job.options.record(),
        "build_s": round(build_s, 3),
        "digest": job.digest,
        "layers": job.layers_file,
        "tool": f"edgekit {__version__}",
    }
    if job.plugins:
        out["plugins"] = dict(sorted(job.plugins.items()))
    if job.gpu:
        out["gpu"] = job.gpu
    return out


def _compiled(
    name: str, job: _Job, variant: Variant, reused: str, found: EngineLayers | None, warnings: tuple[str, ...] = ()
) -> Compiled:
    return Compiled(
        id=variant.id,
        source=job.source.id,
        target=name,
        sm=job.target.sm,
        module=job.module.title,
        file=variant.file,
        bytes=variant.bytes,
        reused=reused,
        build_s=float(variant.settings["build_s"]),
        summary=summary_of(found) if found is not None and found.layers else None,
        plugins=tuple(sorted(job.plugins)),
        warnings=warnings,
    )


def stored_layers(package: Package, variant: Variant) -> EngineLayers | None:
    """The layers that were kept beside an engine, or None."""
    name = variant.settings.get("layers")
    if not isinstance(name, str) or name not in package.manifest.all_files():
        return None
    try:
        return msgspec.json.decode(package.file(name).read_bytes(), type=EngineLayers)
    except msgspec.DecodeError:
        return None
