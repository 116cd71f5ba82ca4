"""Optional packages, imported when they are needed and named clearly when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from edgekit.errors import MissingDependencyError

EXTRA_OF = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
    "opentelemetry": "otel",
    "pyarrow": "batch",
    "ray": "ray",
    "cryptography": "sign",
    "matplotlib": "bench",
    "mlperf_loadgen": "loadgen",
    "fsspec": "remote",
    "google": "serve",
    "hpack": "serve",
    "httptools": "serve",
    "uvloop": "serve",
    "zstandard": "telemetry",
}
"""Import name -> the extra of edgekit that installs it."""

QUIET = {"onnxruntime": "ORT_DISABLE_TELEMETRY"}
"""Import name -> the variable that keeps a library from telling its maker what it is used for: ONNX Runtime reports
names and digests of models from 1.29 on. It is read when the library is loaded; what the user set wins."""


def require(module: str, *, why: str) -> Any:
    """Import `module` and return it.

    `why` completes the sentence "… is needed to <why>".

    Raises:
        MissingDependencyError: the module is not installed.
    """
    root = module.partition(".")[0]
    if root in QUIET:
        os.environ.setdefault(QUIET[root], "1")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        extra = EXTRA_OF.get(root)
        fix = f"pip install 'edgekit[{extra}]'" if extra else f"pip install {root}"
        raise MissingDependencyError(f"{root} is needed to {why} and is not installed. Run: {fix}") from error


def available(module: str) -> bool:
    """Whether `module` can be imported, found without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
