"""Which variant runs on this machine, where, and why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit._lazy import available, require
from edgekit.errors import BackendError, MissingDependencyError, ModelError, UsageError
from edgekit.gpu import gpu_count
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.runtime.devices import CPU, parse_device
from edgekit.runtime.machine import Machine, look
from edgekit.runtime.ort import OrtSession
from edgekit.runtime.session import Session
from edgekit.runtime.trt import TrtSession
from edgekit.runtime.trt_load import REBUILD
from edgekit.trt_api import INSTALL, MODULES

_log = logging.getLogger(__name__)

CPU_PREFERENCE = ("int8", "fp32", "fp16")
"""On a CPU, INT8 is the fastest form where it exists; FP16 runs at FP32 speed at best."""

ENGINE_PREFERENCE = ("int8", "fp16", "bf16", "fp32")
CUDA_PREFERENCE = ("fp16", "fp32", "bf16")
"""ONNX Runtime's CUDA provider has no INT8 convolutions: the CPU's form of INT8 is left to the CPU."""


@dataclass(frozen=True)
class Choice:
    """A variant with the device that it runs on and the reason it was chosen, in one line."""

    variant: Variant
    reason: str
    device: str = "cpu"


def runnable(package: Package, *, device: str | None = None, machine: Machine | None = None) -> tuple[Variant, ...]:
    """The variants that this machine (or its `device`) can run, in the manifest's order.

    Without a GPU "int8-trt" is left out: TensorRT's form of INT8 is several times slower than FP32 on a CPU; and
    "bf16", for which ONNX Runtime's CPU provider has no kernels. Engines are in where GPU and TensorRT are theirs.
    """
    without = not_runnable(package, device=device, machine=machine)
    return tuple(v for v in package.manifest.variants if v.id not in without)


def not_runnable(package: Package, *, device: str | None = None, machine: Machine | None = None) -> dict[str, str]:
    """The variants that `runnable` leaves out -> why, as a clause."""
    package.require_one_model()
    here = _at(device, machine or _machine(package, device))
    reasons = {v.id: _against(v, here) for v in package.manifest.variants}
    return {name: why for name, why in reasons.items() if why}


def _against(variant: Variant, machine: Machine) -> str:
    """What keeps a variant from running; "" if nothing does."""
    if variant.format in MODULES:
        return engine_obstacle(variant, machine)
    if variant.format != "onnx":
        return f"it is of format {variant.format}, which this edgekit does not run"
    if not available("onnxruntime"):
        return "ONNX Runtime is not installed"
    if variant.precision == "int8-trt":
        return "it is TensorRT's form of INT8, several times slower than FP32 on a CPU: compile it"
    if variant.precision == "bf16" and not machine.onnx_cuda:
        return "ONNX Runtime has bfloat16 on CUDA alone"
    return ""


def engine_obstacle(variant: Variant, machine: Machine) -> str:
    """Why this machine cannot run an engine, as a clause; "" if nothing speaks against it before it is loaded."""
    return _obstacle(variant, machine)[0]


def _obstacle(variant: Variant, machine: Machine) -> tuple[str, str]:
    """Why this machine cannot run an engine, as a clause, and what to do about it; both "" if it may."""
    name = f"engine '{variant.id}'"
    if not machine.gpu:
        return f"{name} needs an NVIDIA GPU ({variant.target})", "Run it on a machine that has one"
    built, options = _sm(variant), variant.settings.get("options", {})
    portable = options.get("hardware") == "ampere+" and 80 <= built <= machine.sm
    if built != machine.sm and not portable:
        return f"{name} is for sm_{built} and this GPU is sm_{machine.sm}", REBUILD
    release = machine.tensorrt.get(variant.format)
    if release is None:
        why = machine.missing.get(variant.format, "TensorRT is not installed")
        return f"{name} cannot run since {why}", f"Run: {INSTALL[variant.format]}"
    made = str(variant.settings.get("version", ""))
    wanted, have = made.split(".")[:2], release.split(".")[:2]
    later = options.get("version_compatible") and wanted[:1] == have[:1] and _number(wanted) <= _number(have)
    if made and wanted != have and not later:
        return f"{name} is for TensorRT {'.'.join(wanted)} and {'.'.join(have)} is installed", REBUILD
    if options.get("strip"):
        return f"{name} has no weights in it (--strip)", "Compile it without --strip"
    return "", ""


def _number(release: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in release)


def _sm(variant: Variant) -> int:
    head = variant.target.partition("-")[0].removeprefix("sm")
    return int(head) if head.isdigit() else 0


def choose(
    package: Package, variant: str | None = None, *, device: str | None = None, machine: Machine | None = None
) -> Choice:
    """The variant to run: the one asked for, else the best for `device` (None: for this machine).

    Raises:
        UsageError: no such variant or device, or none that can run there.
        MissingDependencyError: there is no GPU, and ONNX Runtime is not installed.
    """
    return candidates(package, variant, device=device, machine=machine)[0]


def candidates(
    package: Package, variant: str | None = None, *, device: str | None = None, machine: Machine | None = None
) -> list[Choice]:
    """What could run, best first: the one that was asked for alone, or engines, ONNX on CUDA and ONNX on the CPU.

    Raises:
        UsageError: as for `choose`.
    """
    package.require_one_model()
    here = _at(device, machine or _machine(package, device))
    if variant is not None:
        return _asked(package.variant(variant), here, device)
    able = runnable(package, machine=here)
    out: list[Choice] = []
    notes: list[str] = []
    if here.gpu:
        out += _engines(able, here)
        if not out:
            engines = [v for v in package.manifest.variants if v.format in MODULES]
            notes += [engine_obstacle(v, here) for v in engines[:1]]
        out += _on_cuda(package, able, here, notes)
        if not here.onnx_cuda:
            notes.append(f"{here.gpu} is not used by ONNX Runtime: pip install 'edgekit[gpu]'")
    if device is None or not here.gpu:
        out += _on_cpu(package, able, notes)
    if not out:
        if not here.gpu:
            require("onnxruntime", why="run ONNX models")
        where = f"on {here.place}" if here.gpu else "on this machine"
        why = f" ({'; '.join(notes)})" if notes else ""
        fix = "Compile an engine there: edgekit compile X.edge --target this" if here.gpu else "Export an ONNX variant."
        raise UsageError(f"'{package.path.name}' has no variant that can run {where}{why}. {fix}")
    return out


def _asked(chosen: Variant, here: Machine, device: str | None) -> list[Choice]:
    if chosen.format in MODULES:
        clause, fix = _obstacle(chosen, here)
        if clause:
            raise UsageError(
                f"This machine cannot run variant '{chosen.id}': {clause}. {fix}. Without --variant edgekit chooses."
            )
        return [Choice(chosen, "asked for", str(here.place))]
    if chosen.format != "onnx":
        raise UsageError(f"Variant '{chosen.id}' is of format {chosen.format}, which this edgekit does not run.")
    there, on_cpu = Choice(chosen, "asked for", str(here.place)), Choice(chosen, "asked for")
    if here.gpu and device is not None:
        return [there]
    return [there, on_cpu] if here.onnx_cuda and chosen.precision in CUDA_PREFERENCE else [on_cpu]


def _engines(able: Sequence[Variant], here: Machine) -> list[Choice]:
    engines = _ranked([v for v in able if v.format in MODULES], ENGINE_PREFERENCE)
    place = str(here.place)
    return [
        Choice(
            v,
            f"engine built for this GPU ({here.gpu}, sm_{here.sm}) and "
            f"{'TensorRT-RTX' if v.format == 'tensorrt-rtx' else 'TensorRT'} {here.tensorrt[v.format]}",
            place,
        )
        for v in engines
    ]


def _on_cuda(package: Package, able: Sequence[Variant], here: Machine, notes: Sequence[str]) -> list[Choice]:
    fits = [v for v in able if v.format == "onnx" and v.precision in CUDA_PREFERENCE] if here.onnx_cuda else []
    total = len(package.manifest.variants)
    reason = f"best of {total} variants for ONNX Runtime with CUDA on {here.gpu}"
    return [Choice(v, _with(reason, notes), str(here.place)) for v in _ranked(fits, CUDA_PREFERENCE)[:1]]


def _on_cpu(package: Package, able: Sequence[Variant], notes: Sequence[str]) -> list[Choice]:
    others = len(package.manifest.variants) - 1
    reason = f"best of {others + 1} variants for ONNX Runtime on the CPU" if others else "the only variant"
    ranked = _ranked([v for v in able if v.format == "onnx" and v.precision != "bf16"], CPU_PREFERENCE)
    return [Choice(v, _with(reason, notes)) for v in ranked[:1]]


def _with(reason: str, notes: Sequence[str]) -> str:
    return "; ".join([reason, *notes])


def _ranked(variants: Sequence[Variant], preference: Sequence[str]) -> list[Variant]:
    """`variants` best first; those that were marked as not paying or not accurate enough only if nothing else is."""
    usable = [v for v in variants if not v.settings.get("over_budget") and not v.settings.get("not_faster")]
    rank = {p: i for i, p in enumerate(preference)}
    return sorted(usable or variants, key=lambda v: rank.get(v.precision, len(rank)))


def _machine(package: Package, device: str | None = None) -> Machine:
    place = parse_device(device) if device is not None else None
    if place == CPU:
        return Machine()
    engines = any(v.format in MODULES for v in package.manifest.variants)
    return look(place.index if place is not None else 0, engines=engines)


def _at(device: str | None, machine: Machine) -> Machine:
    """The machine as `device` restricts it. Raises UsageError: there is no such GPU."""
    if device is None:
        return machine
    place = parse_device(device)
    if place == CPU:
        return Machine()
    if not machine.gpu:
        raise UsageError(f"Device {place} does not exist; {_gpus()}")
    return replace(machine, place=place)


def _gpus() -> str:
    count = gpu_count()
    if not count:
        return "no NVIDIA GPU with its driver is found. See: edgekit doctor"
    return "this machine has " + (f"cuda:0 to cuda:{count - 1}." if count > 1 else "cuda:0.")


def open_session(
    package: Package | str | Path,
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    machine: Machine | None = None,
) -> Session:
    """Open the best variant of `package` for this machine (or `variant`, or the best for `device`), its digest checked.

    `package` is a Package, or where one is. An engine that was chosen, not asked for, and does not load is replaced by
    the next best with a warning. Of a package of stages all are opened, on one device; see `edgekit.runtime.placed` for
    several devices.

    Raises:
        PackageError: there is no package.
        UsageError: no such variant or device, or none that can run here.
        IntegrityError: the file changed.
        ModelError: the runtime cannot load it.
        BackendError: the GPU or its libraries do not work.
    """
    if not isinstance(package, Package):
        package = Package.open(package)
    if package.stage_names:
        from edgekit.runtime.placed import open_placed  # which opens each stage with this file

        return open_placed(package, variant=variant, threads=threads, devices=(device,) if device else ()).session
    return open_best(package, variant=variant, threads=threads, device=device, machine=machine)[0]


def open_best(
    package: Package,
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    machine: Machine | None = None,
) -> tuple[Session, Choice]:
    """As `open_session`, with the choice that was opened; its reason names what did not load and how to fix it."""
    here = machine or _machine(package, device)
    choices = candidates(package, variant, device=device, machine=here)
    if variant is None and choices[0].variant.format not in MODULES:
        _warn_of_engines(package, _at(device, here))
    failed: list[str] = []
    for choice in choices[:-1]:
        try:
            return _open(package, choice, threads), replace(choice, reason=_with(choice.reason, failed))
        except (BackendError, MissingDependencyError, ModelError) as error:
            _log.warning("Variant '%s' is not used: %s", choice.variant.id, error)
            failed.append(f"'{choice.variant.id}' did not load")
    last = choices[-1]
    return _open(package, last, threads), replace(last, reason=_with(last.reason, failed))


def _warn_of_engines(package: Package, here: Machine) -> None:
    """Say what keeps a GPU from running the engines of a package, and the fix; each reason once."""
    if not here.gpu:
        return
    for engine in (v for v in package.manifest.variants if v.format in MODULES):
        clause, fix = _obstacle(engine, here)
        if clause:
            _log.warning("No engine of '%s' is used: %s. %s", package.path.name, clause, fix)
            return


def _open(package: Package, choice: Choice, threads: int | None) -> Session:
    chosen, path = choice.variant, package.model_file(choice.variant)
    if chosen.format == "onnx":
        return OrtSession(path, variant=chosen.id, threads=threads, device=choice.device)
    return TrtSession(
        path,
        kind=chosen.format,
        variant=chosen.id,
        device=choice.device,
        inputs=package.manifest.input_specs,
        outputs=package.manifest.output_specs,
        host_code=bool(chosen.settings.get("options", {}).get("version_compatible")),
    )
