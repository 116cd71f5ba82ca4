"""What a build can be told, and the digest that makes equal builds equal."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from edgekit.engine.profiles import Profile

Hardware = Literal["none", "same", "ampere+"]
Verbosity = Literal["detailed", "names", "none"]

SCHEMA = 1
"""Part of every digest: raised when this code builds differently from the same options."""


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is built; the defaults are TensorRT's own.

    Attributes:
        profiles: ranges of shapes; empty for a model without free dimensions.
        workspace_mb: most scratch memory a layer may take, in 1e6 bytes; None leaves TensorRT's limit (all there is).
        level: optimisation level 0 (quick build) to 5 (slow build, fast engine); None is TensorRT's, 3.
        hardware: "same" makes the engine run on every GPU of the same compute capability, "ampere+" on Ampere and
            later; both may be slower. "none" ties it to this GPU.
        version_compatible: runs on later TensorRT releases of the same major version; may be slower.
        strip: leave the weights out of the file; refit: weights can be changed later.
        dla: deep-learning accelerator core to use, falling back to the GPU; None is the GPU alone.
        sparsity: let TensorRT use 2:4 sparse weights where the weights are.
        verbosity: what the engine tells of its layers.
        timing_cache: remember the timing of kernels between builds.
        plugins: run what CUDA plugins can do as plugins, where the module has plugins compiled ahead of time.
    """

    profiles: tuple[Profile, ...] = ()
    workspace_mb: int | None = None
    level: int | None = None
    hardware: Hardware = "none"
    version_compatible: bool = False
    strip: bool = False
    refit: bool = False
    dla: int | None = None
    sparsity: bool = False
    verbosity: Verbosity = "detailed"
    timing_cache: bool = True
    plugins: bool = True

    def suffix(self) -> str:
        """What sets an engine's name apart from the plain one's: "" or "-dla0-vc"."""
        parts = [
            f"-dla{self.dla}" if self.dla is not None else "",
            {"none": "", "same": "-samecc", "ampere+": "-ampere"}[self.hardware],
            "-vc" if self.version_compatible else "",
            "-stripped" if self.strip else "-refit" if self.refit else "",
            "-sparse" if self.sparsity else "",
            "" if self.plugins else "-noplugins",
        ]
        return "".join(parts)

    def record(self) -> dict[str, Any]:
        """The options that differ from the defaults, for the manifest."""
        defaults = msgspec.to_builtins(BuildOptions())
        mine: dict[str, Any] = msgspec.to_builtins(self)
        return {k: v for k, v in mine.items() if v != defaults[k] and k != "profiles"}


def build_digest(options: BuildOptions, **facts: Any) -> str:
    """SHA-256 of everything that decides what a build gives: options and `facts` (model, module, target, plugins)."""
    known = msgspec.to_builtins(options)
    for name in ("timing_cache", "plugins"):  # remembers timings, and stands in `facts` as the plugins that are used
        known.pop(name)
    text = msgspec.json.encode({"schema": SCHEMA, "options": known, **facts}, order="deterministic")
    return hashlib.sha256(text).hexdigest()
