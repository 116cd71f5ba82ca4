"""What building and running engines share: the TensorRT modules, their loggers, and what must not happen meanwhile."""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from edgekit.errors import MissingDependencyError

Kind = Literal["tensorrt", "tensorrt-rtx"]
MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""Format of a variant -> the Python module that builds and runs it."""

Log = Callable[[int, str], None]
"""Takes the severity (0 internal error, 1 error, 2 warning, 3 information, 4 verbose) and the text."""

INSTALL: Mapping[str, str] = {
    "tensorrt": "pip install 'edgekit[trt]' (a Jetson has it already)",
    "tensorrt-rtx": "pip install 'edgekit[rtx]'",
}
"""Format of a variant -> the command that installs its module."""


def load_module(kind: str, *, why: str = "run this engine") -> Any:
    """The installed module for engines of format `kind`; `why` completes the sentence "... is needed to <why>".

    Raises:
        MissingDependencyError: it is not installed, or one of its shared libraries is missing.
    """
    name, fix = MODULES[kind], f"Run: {INSTALL[kind]}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{name} is needed to {why} and is not installed. {fix}") from error
    except (ImportError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingDependencyError(f"{name} is installed but cannot be loaded: {first}. {fix}") from error


def title_of(trt: Any) -> str:
    """The module for people: "TensorRT 10.16.0"."""
    return f"{'TensorRT-RTX' if 'rtx' in getattr(trt, '__name__', '') else 'TensorRT'} {trt.__version__}"


def logger_for(trt: Any, log: Log, *, verbose: bool = True) -> Any:
    """A logger object of `trt` that hands every message to `log`; without `verbose` those of severity 4 are dropped."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if verbose or level < 4:
                log(level, message)

    return Logger()


def opened_engine(trt: Any, data: bytes, logger: Any, *, host_code: bool = False) -> tuple[Any, Any]:
    """Runtime and engine of `data`, on the current GPU; the engine is None if it was refused (the logger knows why).

    `host_code` lets a version-compatible engine run the runtime that it carries, which is code: only for an engine
    that you built. Where TensorRT gives no runtime at all, both are None.
    """
    runtime = trt.Runtime(logger)
    if runtime is None:
        return None, None
    if host_code and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(data)


def scratch_bytes(engine: Any) -> int:
    """Bytes of device memory that one run of `engine` works in, weights aside."""
    name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
    return int(getattr(engine, name))


class _Collector:
    """How many are inside `no_collection`, and whether Python's collector ran before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.was_enabled = False


_collector = _Collector()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's cycle collector still while TensorRT builds or loads; may be used by several threads at once.

    TensorRT calls our logger with a lock held. A collection that starts there and frees an old builder would wait for
    that lock for ever, whatever thread it starts in.
    """
    with _collector.lock:
        if _collector.inside == 0:
            _collector.was_enabled = gc.isenabled()
            gc.disable()
        _collector.inside += 1
    try:
        yield
    finally:
        with _collector.lock:
            _collector.inside -= 1
            if _collector.inside == 0 and _collector.was_enabled:
                gc.enable()
