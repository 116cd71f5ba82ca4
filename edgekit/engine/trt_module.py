"""One interface to `tensorrt` (10.3 to 11) and `tensorrt_rtx_bindings`: every difference between releases is here.

The module is a parameter. What a release can do is found by looking (`hasattr`), never by comparing version numbers;
enumeration members are looked up by name, since their integers change between releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edgekit.engine.options import BuildOptions
from edgekit.errors import BackendError, UsageError
from edgekit.trt_api import Kind, Log, load_module, logger_for, no_collection, opened_engine, scratch_bytes

HARDWARE = {"same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
VERBOSITY = {"detailed": "DETAILED", "names": "LAYER_NAMES_ONLY", "none": "NONE"}


@dataclass(frozen=True)
class ParserFault:
    """One complaint of the ONNX parser: its code's name, text, and the node's index, name and operator."""

    code: str
    text: str
    node: int
    name: str
    operator: str


class TrtModule:
    """A loaded TensorRT module with its differences hidden. See `load`."""

    def __init__(self, module: Any, kind: Kind) -> None:
        self.trt = module
        self.kind = kind

    @property
    def version(self) -> str:
        """The full release ("10.13.3.9")."""
        return str(self.trt.__version__)

    @property
    def tag(self) -> str:
        """Module and release as engine names carry them: "trt10.16", "rtx1.7"."""
        short = ".".join(self.version.split(".")[:2])
        return f"{'rtx' if self.kind == 'tensorrt-rtx' else 'trt'}{short}"

    @property
    def title(self) -> str:
        """The module for people: "TensorRT-RTX 1.7.1.116"."""
        return f"{'TensorRT-RTX' if self.kind == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    @property
    def cross_compiles(self) -> bool:
        """Whether it builds for a GPU that is not in this machine."""
        return hasattr(self.trt.IBuilderConfig, "set_compute_capability")

    def capabilities(self) -> tuple[int, ...]:
        """The compute capabilities that it cross-compiles for; empty if it builds for this machine's GPU alone."""
        names = dir(getattr(self.trt, "ComputeCapability", None))
        return tuple(sorted(int(m[1]) for n in names if (m := re.fullmatch(r"SM(\d+)", n))))

    @property
    def strongly_typed(self) -> bool:
        """Whether the graph decides the precision."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def has_progress(self) -> bool:
        """Whether builds report progress and can be cancelled."""
        return hasattr(self.trt, "IProgressMonitor")

    @property
    def has_timing_cache(self) -> bool:
        """Whether a timing cache does anything: TensorRT-RTX keeps the calls and ignores them."""
        return hasattr(self.trt.IBuilderConfig, "set_timing_cache") and not self.cross_compiles

    @property
    def editable_timing_cache(self) -> bool:
        """Whether single entries of the timing cache can be read and changed."""
        return hasattr(self.trt.BuilderFlag, "EDITABLE_TIMING_CACHE") and self.has_timing_cache

    @property
    def has_quick_plugins(self) -> bool:
        """Whether plugins compiled ahead of time can be put into engines."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS")

    def network_flags(self, *, plugins: bool = False) -> int:
        """The flags of a strongly typed network; with `plugins`, also that those compiled ahead of time are meant.

        Raises:
            UsageError: this release has none: its precision would come from builder flags.
        """
        if not self.strongly_typed:
            raise UsageError(
                f"{self.title} cannot take the precision from the graph. Use TensorRT 10.3 or later (JetPack 6.1)."
            )
        flags = self.trt.NetworkDefinitionCreationFlag
        names = ("STRONGLY_TYPED", "EXPLICIT_BATCH", *["PREFER_AOT_PYTHON_PLUGINS"] * plugins)
        return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))

    def refused(self, options: BuildOptions) -> list[str]:
        """What of `options` this release does not have, each as the name of the option on the command line."""
        flags, levels = self.trt.BuilderFlag, self.trt.HardwareCompatibilityLevel
        wanted = {
            "--version-compatible": not options.version_compatible or hasattr(flags, "VERSION_COMPATIBLE"),
            "--strip": not options.strip or hasattr(flags, "STRIP_PLAN"),
            "--refit": not options.refit or hasattr(flags, "REFIT"),
            "--sparsity": not options.sparsity or hasattr(flags, "SPARSE_WEIGHTS"),
            "--dla": options.dla is None or (hasattr(self.trt.DeviceType, "DLA") and not self.cross_compiles),
        }
        if options.hardware != "none":  # TensorRT-RTX has the levels and ignores them: its engines are portable
            wanted[f"--hardware {options.hardware}"] = (
                hasattr(levels, HARDWARE[options.hardware]) and not self.cross_compiles
            )
        return [name for name, fine in wanted.items() if not fine]

    def check(self, options: BuildOptions) -> None:
        """Raise UsageError, naming the option, if this release cannot do what is asked."""
        for name in self.refused(options):
            raise UsageError(f"{self.title} has no {name}. Leave it out, or compile with another TensorRT.")

    def logger(self, log: Log, *, verbose: bool) -> Any:
        """A logger object that hands every message to `log`."""
        return logger_for(self.trt, log, verbose=verbose)

    def parsed(self, path: str, logger: Any, *, plugins: bool = False) -> tuple[Any, Any, list[ParserFault]]:
        """Builder and network of the ONNX file at `path`, and what the parser complains of (empty: it parsed).

        `plugins` says that there are nodes of registered plugins in it (see `edgekit.engine.plugins.register`).
        """
        builder = self.trt.Builder(logger)
        if builder is None:
            raise BackendError(f"{self.title} gives no builder: is the GPU driver installed? See: edgekit doctor")
        network = builder.create_network(self.network_flags(plugins=plugins))
        if network is None:
            raise BackendError(f"{self.title} gives no network for these flags. See: edgekit doctor")
        parser = self.trt.OnnxParser(network, logger)
        if parser.parse_from_file(path):
            return builder, network, []
        faults = [self._fault(parser.get_error(i)) for i in range(parser.num_errors)]
        return builder, network, faults or [ParserFault("", "no reason was given", -1, "", "")]

    def faults(self, path: str) -> list[ParserFault]:
        """Every node of the ONNX file at `path` that the parser would refuse, without building anything."""
        with no_collection():
            logger = self.logger(lambda _severity, _text: None, verbose=False)
            network = self.trt.Builder(logger).create_network(self.network_flags())
            parser = self.trt.OnnxParser(network, logger)
            if not hasattr(parser, "supports_model_v2"):  # it names the first one alone
                return [] if parser.parse_from_file(path) else [self._fault(parser.get_error(0))]
            with open(path, "rb") as file:
                fine = parser.supports_model_v2(file.read(), path)
            return [] if fine else [self._fault(parser.get_error(i)) for i in range(parser.num_errors)]

    def _fault(self, error: Any) -> ParserFault:
        return ParserFault(
            code=getattr(error.code(), "name", str(error.code())),
            text=str(error.desc()),
            node=int(error.node()),
            name=str(error.node_name()) if hasattr(error, "node_name") else "",
            operator=str(error.node_operator()) if hasattr(error, "node_operator") else "",
        )

    def config(self, builder: Any, options: BuildOptions, *, sm: int) -> Any:
        """A builder configuration with `options`, for a GPU of compute capability `sm`.

        Raises:
            UsageError: an option or the target that this release does not have.
        """
        self.check(options)
        trt, config = self.trt, builder.create_builder_config()
        if self.cross_compiles:
            if sm not in self.capabilities():
                raise UsageError(
                    f"{self.title} does not compile for sm_{sm}; it does for "
                    f"{', '.join(f'sm_{s}' for s in self.capabilities())}."
                )
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 1_000_000)
        if options.level is not None:
            config.builder_optimization_level = options.level
        if options.hardware != "none":
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware])
        config.profiling_verbosity = getattr(trt.ProfilingVerbosity, VERBOSITY[options.verbosity])
        for name in self._flags(options):
            config.set_flag(getattr(trt.BuilderFlag, name))
        if options.dla is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = options.dla
        self._add_profiles(builder, config, options)
        return config

    def _flags(self, options: BuildOptions) -> Iterable[str]:
        if options.version_compatible:
            yield "VERSION_COMPATIBLE"
        if options.strip:
            yield "STRIP_PLAN"
            if hasattr(self.trt.BuilderFlag, "REFIT_IDENTICAL") and not options.refit:
                yield "REFIT_IDENTICAL"
        if options.refit:
            yield "REFIT"
        if options.sparsity:
            yield "SPARSE_WEIGHTS"
        if options.dla is not None:
            yield "GPU_FALLBACK"
        if options.timing_cache and self.editable_timing_cache:
            yield "EDITABLE_TIMING_CACHE"

    def _add_profiles(self, builder: Any, config: Any, options: BuildOptions) -> None:
        for shapes in options.profiles:
            profile = builder.create_optimization_profile()
            for name, r in shapes.items():
                profile.set_shape(name, r.min, r.opt, r.max)
            if config.add_optimization_profile(profile) < 0:
                text = ", ".join(f"{n}:{r}" for n, r in shapes.items())
                raise UsageError(f"{self.title} refuses the shapes {text}. Give others with --shapes.")

    def set_progress(self, config: Any, on_step: Callable[[str, int, int], bool]) -> None:
        """Call `on_step(phase, done, total)` as the build goes on; False cancels. Old releases call nothing."""
        if not self.has_progress:
            return
        trt = self.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self._totals: dict[str, int] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self._totals[phase_name] = num_steps

            def step_complete(self, phase_name: str, step: int) -> bool:
                return on_step(phase_name, step + 1, self._totals.get(phase_name, 0))

            def phase_finish(self, phase_name: str) -> None:
                self._totals.pop(phase_name, None)

        config.progress_monitor = Monitor()

    def load_timing_cache(self, config: Any, data: bytes) -> None:
        """Give `config` a timing cache; one of another GPU or release is ignored by TensorRT."""
        if self.has_timing_cache:
            config.set_timing_cache(config.create_timing_cache(data), False)

    def timing_cache(self, config: Any) -> bytes | None:
        """The timing cache after a build, or None."""
        cache = config.get_timing_cache() if self.has_timing_cache else None
        return bytes(cache.serialize()) if cache is not None else None

    def serialized(self, builder: Any, network: Any, config: Any) -> bytes | None:
        """Build; None if it failed or was cancelled (the logger was told why)."""
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    def engine(self, data: bytes, logger: Any, *, host_code: bool = False) -> Any:
        """The engine in `data`, on this machine's GPU; None if it cannot be loaded (the logger was told why).

        `host_code` lets a version-compatible engine run the runtime that it carries: only for one built here.
        """
        return opened_engine(self.trt, data, logger, host_code=host_code)[1]

    def engine_information(self, engine: Any) -> str:
        """The inspector's JSON."""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def device_memory(self, engine: Any) -> int:
        """Bytes of device memory that running the engine takes, weights aside."""
        return scratch_bytes(engine)


def load(kind: Kind, *, why: str = "compile engines") -> TrtModule:
    """The installed module of that kind.

    Raises:
        MissingDependencyError: it is not installed, or one of its shared libraries is missing.
    """
    return TrtModule(load_module(kind, why=why), kind)
