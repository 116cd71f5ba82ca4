"""edgekit: from a PyTorch model to a box at the edge, with its energy measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.export.frames import with_preprocess as with_preprocess
    from edgekit.export.weights import load_weights as load_weights
    from edgekit.package import Package as Package
    from edgekit.preprocess import AudioPreprocess as AudioPreprocess
    from edgekit.preprocess import ImagePreprocess as ImagePreprocess
    from edgekit.recipe import ModelSpec as ModelSpec
    from edgekit.runtime.select import open_session as open_session
    from edgekit.telemetry.measure import measure_energy as measure_energy
    from edgekit.tensors import TensorSpec as TensorSpec

_HOME = {
    "AudioPreprocess": "edgekit.preprocess",
    "EdgekitError": "edgekit.errors",
    "ImagePreprocess": "edgekit.preprocess",
    "ModelSpec": "edgekit.recipe",
    "Package": "edgekit.package",
    "TensorSpec": "edgekit.tensors",
    "load_weights": "edgekit.export.weights",
    "measure_energy": "edgekit.telemetry.measure",
    "open_session": "edgekit.runtime.select",
    "with_preprocess": "edgekit.export.frames",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    """Public names, imported on first use: `import edgekit` alone costs nothing."""
    import importlib

    if name == "quantize":  # a package that can be called: edgekit.quantize(package, precision="int8")
        return importlib.import_module("edgekit.quantize")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
