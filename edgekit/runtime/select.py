"""Which variant runs on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.runtime.ort import OrtSession
from edgekit.runtime.session import Session

CPU_PREFERENCE = ("int8", "fp32", "fp16")
"""On a CPU, INT8 is the fastest form where it exists; FP16 runs at FP32 speed at best."""


@dataclass(frozen=True)
class Choice:
    """A variant with the reason it was chosen, in one line."""

    variant: Variant
    reason: str


def runnable(package: Package) -> tuple[Variant, ...]:
    """The variants that this machine can run, in the manifest's order.

    "int8-trt" is left out: TensorRT's form of INT8 is several times slower than FP32 on a CPU; and "bf16", for which
    ONNX Runtime's CPU provider has no kernels.
    """
    return tuple(v for v in package.manifest.variants if v.format == "onnx" and v.precision not in ("int8-trt", "bf16"))


def choose(package: Package, variant: str | None = None) -> Choice:
    """The variant to run: the one asked for, else the best for this machine.

    Raises:
        UsageError: no such variant, or none that this machine can run.
    """
    if variant is not None:
        chosen = package.variant(variant)
        if chosen.format != "onnx":
            raise UsageError(
                f"Variant '{variant}' is a {chosen.format} engine for {chosen.target}, "
                "which this machine cannot run. Leave --variant out to let edgekit choose."
            )
        return Choice(chosen, "asked for")
    able = runnable(package)
    if not able:
        raise UsageError(f"'{package.path.name}' has no variant that this machine can run. Export an ONNX variant.")
    rank = {p: i for i, p in enumerate(CPU_PREFERENCE)}
    usable = [v for v in able if not v.settings.get("over_budget") and not v.settings.get("not_faster")]
    best = min(usable or able, key=lambda v: rank.get(v.precision, len(rank)))
    others = len(package.manifest.variants) - 1
    reason = f"best of {others + 1} variants for ONNX Runtime on the CPU" if others else "the only variant"
    return Choice(best, reason)


def open_session(package: Package, *, variant: str | None = None, threads: int | None = None) -> Session:
    """Open the best variant of `package` for this machine (or `variant`), its digest checked.

    Raises:
        UsageError: no such variant, or none that can run here.
        IntegrityError: the file changed.
        ModelError: the runtime cannot load it.
    """
    chosen = choose(package, variant).variant
    return OrtSession(package.model_file(chosen), variant=chosen.id, threads=threads)
