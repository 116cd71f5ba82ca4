"""Opens engines with `tensorrt` or `tensorrt_rtx_bindings`, and says in a sentence why one cannot be opened."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from typing import Any

from edgekit.errors import BackendError, EdgekitError, MissingDependencyError, ModelError
from edgekit.trt_api import logger_for, opened_engine, title_of

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's name of a type -> edgekit's."""

REBUILD = "Build it on this machine: edgekit compile X.edge --target this"

_log = logging.getLogger(__name__)


class Journal:
    """The last errors that TensorRT logged, from any thread. Its other messages go to Python's logging."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=20)

    def note(self, severity: int, text: str) -> None:
        """Take one message; 0 is an internal error, 1 an error, 2 a warning, 3 and above information."""
        if severity <= 1:
            with self._lock:
                self._errors.append(text)
        _log.log(logging.DEBUG if severity >= 2 else logging.INFO, "TensorRT: %s", text)

    def take(self) -> list[str]:
        """The errors since the last call, oldest first."""
        with self._lock:
            out = list(self._errors)
            self._errors.clear()
        return out


def open_engine(
    trt: Any, data: bytes, journal: Journal, *, variant: str, sm: int, host_code: bool = False
) -> tuple[Any, Any, Any]:
    """Logger, runtime and engine of `data`; keep all three as long as the engine. The GPU must be current.

    `host_code` lets a version-compatible engine run the runtime that it carries, which is code: only for an engine
    that you built. `sm` is this GPU's compute capability.

    Raises:
        ModelError: the file is damaged.
        BackendError: it is for another GPU or TensorRT, or there is not enough memory; the message says what to do.
    """
    logger = logger_for(trt, journal.note)
    journal.take()
    runtime, engine = opened_engine(trt, data, logger, host_code=host_code)
    if engine is None:
        raise load_error(journal.take(), trt=title_of(trt), variant=variant, sm=sm)
    return logger, runtime, engine


def load_error(messages: list[str], *, trt: str, variant: str, sm: int) -> EdgekitError:
    """The error for an engine that was refused with `messages`."""
    low = "\n".join(messages).lower()
    head = f"{trt} cannot load engine '{variant}'"
    if re.search(
        r"buffersize|blobsize|unexpected end|truncat|out of range|premature|corrupt|checksum|empty memory", low
    ):
        return ModelError(f"{head}: the file is damaged or cut short. Copy it again, or compile it again.")
    if "magic" in low:
        return ModelError(f"{head}: the file is no engine, or of another kind of TensorRT. {REBUILD}")
    built = re.search(r"expecting compute (\d+)\.(\d+) got compute (\d+)\.(\d+)", low)
    if built is not None or "incompatible device" in low or "different device" in low or "compute capability" in low:
        made = f"sm_{built[1]}{built[2]}" if built is not None else "another GPU"
        if built is not None and int(built[1] + built[2]) == sm:
            made = f"sm_{built[3]}{built[4]}"  # releases differ in which of the two they expect
        return BackendError(f"{head}: it was built for {made}, and this GPU is sm_{sm}. {REBUILD}")
    if re.search(r"version tag|serialization version|library version|this version of tensorrt|versionread", low):
        return BackendError(f"{head}: it was built by another TensorRT. {REBUILD}")
    if "lean runtime" in low or "host code" in low or "hostcode" in low:
        return BackendError(
            f"{head}: it is version-compatible and carries code of its own, which runs only with host_code=True "
            "(a package whose manifest says that it was compiled so is opened with it)."
        )
    if _memory(low):
        return BackendError(f"{head}: the GPU is out of memory. Stop other programs on it, or use a smaller variant.")
    if "driver version is insufficient" in low or "no cuda-capable" in low:
        return BackendError(f"{head}: no NVIDIA driver that is new enough answers. See: edgekit doctor")
    if "plugin" in low:
        return MissingDependencyError(f"{head}: a plugin that it needs is not installed ({_first(messages)}).")
    return BackendError(f"{head}: {_first(messages)}. {REBUILD}")


def run_error(messages: list[str], *, variant: str) -> BackendError:
    """The error for a run that TensorRT refused with `messages`."""
    if _memory("\n".join(messages).lower()):
        return BackendError(
            f"The GPU is out of memory while running '{variant}'. Send smaller batches, open fewer slots, or stop "
            "other programs on the GPU."
        )
    return BackendError(f"TensorRT failed while running '{variant}': {_first(messages)}. See: edgekit doctor")


def _memory(low: str) -> bool:
    return any(w in low for w in ("out of memory", "outofmemory", "out_of_memory", "bad_alloc", "insufficient memory"))


def _first(messages: list[str]) -> str:
    if not messages:
        return "it gave no reason"
    line = messages[0].strip().splitlines()[0]
    return re.sub(r" In \w+ at /\S+", "", line).rstrip(" .)")[:300] or "it gave no reason"
