"""Builds one engine from one ONNX file: in a thread, so that Ctrl-C is heard while the compiler works."""

from __future__ import annotations

import gc
import re
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.engine.faults import build_error, parse_error
from edgekit.engine.inspect import EngineLayer, layers_from_json, layers_from_log
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import BackendError, EdgekitError, ModelError
from edgekit.trt_api import no_collection


@dataclass(frozen=True)
class Step:
    """How far a build is: the compiler's phase, its steps (`total` 0: unknown), seconds so far, and the most memory
    that this process held, in bytes."""

    phase: str
    done: int
    total: int
    elapsed_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Built:
    """A serialised engine, its layers (empty where the compiler does not tell), the time it took, what was logged as
    a warning, and the timing cache to keep."""

    data: bytes
    layers: tuple[EngineLayer, ...]
    build_s: float
    warnings: tuple[str, ...]
    timing_cache: bytes | None


_HARMLESS = ("Int64 binding", "the output tensors of this new instance will not be queryable")
"""Warnings about what edgekit does anyway: int64 inputs, and functions that are expanded more than once."""


class _Journal:
    """Collects what the compiler logs: errors and warnings, and the list of layers at the end of a verbose log."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""

    def __call__(self, severity: int, text: str) -> None:
        if severity <= 1:
            self.errors.append(text)
        elif severity == 2:
            if not any(words in text for words in _HARMLESS):
                self.warnings.append(re.sub(r"^\S+\.cpp:\d+: ", "", text))
        elif text.startswith("Layers:"):
            self.layers = text


def build_engine(
    model: Path,
    *,
    module: TrtModule,
    sm: int,
    options: BuildOptions,
    name: str = "",
    plugins: bool = False,
    timing_cache: bytes = b"",
    on_step: Callable[[Step], None] | None = None,
) -> Built:
    """The engine of `model` (a path, so that external data is found) for compute capability `sm`.

    `name` is the variant's, for messages. `plugins`: the model has nodes of plugins, which are registered. `on_step`
    is called from the building thread.

    Raises:
        KeyboardInterrupt: it was cancelled; nothing is left.
        UnsupportedOperatorError: an operator that this TensorRT does not have.
        UsageError: an option, target or range of shapes that it does not have.
        BackendError: the build failed: out of memory, no kernel, no GPU.
    """
    gc.collect()  # builders of before, with their gigabytes
    with no_collection():
        return _built(model, module, sm, options, name or model.stem, plugins, timing_cache, on_step)


def _built(
    model: Path,
    module: TrtModule,
    sm: int,
    options: BuildOptions,
    name: str,
    plugins: bool,
    timing_cache: bytes,
    on_step: Callable[[Step], None] | None,
) -> Built:
    journal = _Journal()
    logger = module.logger(journal, verbose=module.cross_compiles)
    builder: Any = None
    network: Any = None
    config: Any = None
    try:
        builder, network, faults = module.parsed(str(model), logger, plugins=plugins)
        if faults:
            raise parse_error(module, model, faults)
        if network.num_outputs == 0:
            raise ModelError(f"'{model.name}' holds no ONNX graph. Export or download it again.")
        config = module.config(builder, options, sm=sm)
        if options.timing_cache:
            module.load_timing_cache(config, timing_cache)
        start = time.monotonic()
        watch = _Watch(on_step, start)
        module.set_progress(config, watch.step)
        data = watch.run(lambda: module.serialized(builder, network, config))
        if data is None:
            raise build_error(module, journal.errors, what=name, sm=sm)
        took = time.monotonic() - start
        cache = module.timing_cache(config) if options.timing_cache else None
        layers = _layers(module, journal, data, logger, options)
        return Built(data, layers, took, tuple(dict.fromkeys(journal.warnings)), cache)
    finally:
        builder = network = config = logger = None  # an error's traceback must not keep gigabytes alive


def _layers(
    module: TrtModule, journal: _Journal, data: bytes, logger: Any, options: BuildOptions
) -> tuple[EngineLayer, ...]:
    if options.verbosity == "none":
        return ()
    if module.cross_compiles:  # its engines open on their own GPU only, but its log lists the layers
        return layers_from_log(journal.layers)
    engine = module.engine(data, logger, host_code=options.version_compatible)
    return () if engine is None else layers_from_json(module.engine_information(engine))


class _Watch:
    """Runs the build in a thread and passes progress on; an interrupt cancels it and is raised once it has ended."""

    def __init__(self, on_step: Callable[[Step], None] | None, start: float) -> None:
        self._on_step = on_step
        self._start = start
        self._cancel = threading.Event()

    def step(self, phase: str, done: int, total: int) -> bool:
        """Called by the compiler after each step; False stops it."""
        if self._on_step is not None and not self._cancel.is_set():
            self._on_step(Step(phase, done, total, time.monotonic() - self._start, peak_memory()))
        return not self._cancel.is_set()

    def run(self, build: Callable[[], bytes | None]) -> bytes | None:
        """`build()`, with Ctrl-C heard meanwhile."""
        result: list[bytes | None] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                result.append(build())
            except BaseException as error:  # handed to the caller's thread
                failure.append(error)
            finally:
                done.set()

        try:
            threading.Thread(target=work, name="engine build", daemon=True).start()
            while not done.wait(0.1):  # not join: an interrupted join forgets that the thread still runs
                pass
        except BaseException:
            self._cancel.set()
            done.wait()  # the compiler stops at its next step; a second interrupt does not wait for it
            raise
        if failure:
            error = failure[0]
            if isinstance(error, (EdgekitError, MemoryError)) or not isinstance(error, Exception):
                raise error
            raise BackendError(f"The build failed with {type(error).__name__}: {error}") from error
        return result[0]


def peak_memory() -> int:
    """The most memory that this process held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
