"""What a compilation is asked for, checked before anything is built: variants, shapes, targets, builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit._lazy import available
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import Profile, profiles_for
from edgekit.engine.trt_module import TrtModule, load
from edgekit.errors import UsageError
from edgekit.gpu import Gpu
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.targets import THIS, Target, target_of, target_of_gpu
from edgekit.trt_api import MODULES, Kind

COMPILED = ("fp16", "bf16", "int8-trt")
"""Variants that are compiled when none is named: those that a GPU gains from."""

_JETSON = (72, 87, 110)
"""Compute capabilities of chips that only Jetsons have."""


def sources_of(package: Package, asked: Sequence[str]) -> list[Variant]:
    """The ONNX variants to compile: those asked for, else those in `COMPILED`. Raises UsageError."""
    if not asked:
        found = [v for v in package.manifest.variants if v.format == "onnx" and v.id in COMPILED]
        if not found:
            raise UsageError(
                f"'{package.path.name}' has no variant that a GPU gains from. Make one with: edgekit quantize "
                f"{package.path.name} --precision fp16 (or int8), or compile what it has with: --variant "
                f"{package.reference.id}"
            )
        return found
    out = []
    for name in dict.fromkeys(asked):
        variant = package.variant(name)
        if variant.format != "onnx":
            raise UsageError(f"Variant '{name}' is an engine already; name the ONNX variant that it comes from.")
        if variant.precision == "int8" and variant.settings.get("form") == "cpu":
            raise UsageError(
                f"Variant '{name}' is ONNX Runtime's form of INT8; TensorRT takes 'int8-trt'. Name that one."
            )
        out.append(variant)
    return out


def profiles_of(package: Package, asked: Sequence[Profile]) -> tuple[Profile, ...]:
    """The checked profiles of a package's inputs; see `profiles_for`."""
    inputs = package.manifest.input_specs
    batch = inputs[0].shape[0] if inputs[0].batched else None
    others = any(isinstance(d, str) and d != batch for s in inputs for d in s.shape)
    shapes = {}
    if others and package.manifest.samples is not None:
        shapes = {name: array.shape for name, array in package.samples().inputs.items()}
    return profiles_for(inputs, asked, shapes)


def resolve(name: str, gpu: Gpu | None) -> Target:
    """The target called `name`, where "this" is `gpu`. Raises UsageError."""
    if name.strip().lower() != THIS:
        return target_of(name)
    if gpu is None:
        raise UsageError(
            "Target 'this' needs an NVIDIA GPU and its driver, which this machine lacks. Name a target, for example "
            "--target rtx-4090, or see: edgekit doctor"
        )
    return target_of_gpu(gpu.name, gpu.sm, board=gpu.board)


def check_target(target: Target, options: BuildOptions) -> None:
    """Raise UsageError if `options` ask for what the target's hardware does not have."""
    if options.dla is not None:
        without = target.sm not in (72, 87) or (target.family != "generic" and options.dla >= target.dla)
        if without:
            have = f"{target.dla}" if target.family != "generic" else "none"
            raise UsageError(
                f"{target.name} has no deep-learning accelerator {options.dla} (it has {have}). Leave --dla out."
            )
    if options.hardware == "ampere+" and (target.sm < 80 or target.sm in _JETSON):
        why = "is a Jetson chip, for which TensorRT has no such engines" if target.sm in _JETSON else "is older"
        raise UsageError(f"{target.name} ({target.sm_name}) {why}. Leave --hardware ampere+ out.")


def check_machine(module: TrtModule, gpu: Gpu | None, options: BuildOptions) -> None:
    """Raise UsageError if `module` needs a GPU for `options` and there is none."""
    if module.cross_compiles and gpu is None and (options.refit or options.strip):
        raise UsageError(
            f"{module.title} needs an NVIDIA GPU and its driver for --refit and --strip, which this machine lacks. "
            "Leave them out, or compile on a machine with a GPU."
        )


def fitting(
    sources: Sequence[Variant], target: Target, *, name: str, named: bool, note: Callable[[str], None]
) -> list[Variant]:
    """Those of `sources` whose precision `target` (asked for as `name`) has; `note` hears of the others.

    Raises:
        UsageError: one that was `named` by the user is not among them.
    """
    out = []
    for source in sources:
        if source.precision != "bf16" or target.architecture.bf16:
            out.append(source)
            continue
        without = f"{target.architecture.name} has no bfloat16"
        if named:
            fix = "Compile the FP16 variant: edgekit quantize X.edge --precision fp16"
            raise UsageError(f"{without} ({name}). {fix}")
        note(f"{source.id} is left out for {name}: {without}")
    return out


def module_for(target: Target, kind: Kind | None, gpu: Gpu | None) -> TrtModule:
    """The TensorRT that compiles for `target` on this machine: `kind`, or the one that can.

    Raises:
        UsageError: no TensorRT can do it here; the message says where.
        MissingDependencyError: the one that can is not installed.
    """
    here = gpu is not None and gpu.sm == target.sm
    if kind is None:
        if here and available(MODULES["tensorrt"]):
            kind = "tensorrt"
        elif target.rtx:
            kind = "tensorrt-rtx"
        else:
            kind = "tensorrt"
    if kind == "tensorrt-rtx" and not target.rtx:
        raise UsageError(
            f"TensorRT-RTX does not compile for {target.name} ({target.sm_name}). Compile on the device with: "
            "edgekit compile X.edge --target this"
        )
    if kind == "tensorrt" and not here:
        hint = " With --module tensorrt-rtx it can be built here." if target.rtx else ""
        where = target.name if target.name == target.sm_name else f"{target.name} ({target.sm_name})"
        raise UsageError(
            f"An engine for {where} is built on such a device: run edgekit compile there with --target this, "
            "or here with --on user@device. What will work there is said by: "
            f"edgekit compile X.edge --target {target.name} --plan.{hint}"
        )
    return load(kind)
