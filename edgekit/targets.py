"""What engines are compiled for: boards and cards by name, with what their data sheets say, and bare `sm_87`.

The facts are data (`targets.toml`, shipped in the package); this module reads and checks them.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from edgekit.errors import UsageError

THIS = "this"
"""The name for the GPU of this machine; `edgekit compile` looks it up."""


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One generation of GPU by its compute capability (`sm` 87 is 8.7).

    Attributes:
        fp16_ops, int8_ops, fp8_ops: dense operations of one multiprocessor in one cycle; 0 where it has no such units.
        tensorrt: the first TensorRT release that compiles for it; last: the last one, empty while it is current.
        rtx: whether TensorRT-RTX compiles for it (on any machine, without a GPU).
        bf16: whether its tensor cores have bfloat16.
    """

    sm: int
    name: str
    fp16_ops: int
    int8_ops: int
    fp8_ops: int
    tensorrt: str
    alias: str = ""
    last: str = ""
    rtx: bool = False
    bf16: bool = False


class JetPack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release of Jetson's software and the TensorRT and CUDA in it."""

    version: str
    cuda: str
    tensorrt: str


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that engines are compiled for.

    Attributes:
        family: "jetson", "rtx", "datacenter", or "generic" for a bare compute capability, whose figures are None.
        memory_gb, bandwidth_gb_s: as sold, 1e9 bytes; on a Jetson shared by CPU and GPU.
        fp16_tops, int8_tops, fp8_tops: dense 1e12 operations a second; fp8 None without such units.
        power_w: lowest and highest configurable power.
        dla: deep-learning accelerators beside the GPU.
        jetpacks: JetPack releases that run on it.
        halved: whether FP16 and FP8 with FP32 accumulation run at half rate (GeForce).
        source: where the figures come from.
    """

    title: str
    family: str
    sm: int
    name: str = ""
    multiprocessors: int | None = None
    clock_mhz: int | None = None
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    fp16_tops: float | None = None
    int8_tops: float | None = None
    fp8_tops: float | None = None
    power_w: tuple[float, float] | None = None
    dla: int = 0
    jetpacks: tuple[str, ...] = ()
    halved: bool = False
    source: str = ""

    @property
    def architecture(self) -> Architecture:
        """The GPU's generation."""
        return architectures()[self.sm]

    @property
    def rtx(self) -> bool:
        """Whether TensorRT-RTX serves it."""
        return self.architecture.rtx

    @property
    def sm_name(self) -> str:
        """The compute capability as compilers write it: "sm_87"."""
        return f"sm_{self.sm}"


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    architectures: tuple[Architecture, ...]
    jetpacks: tuple[JetPack, ...]
    targets: dict[str, Target]


@cache
def _facts() -> _Facts:
    text = resources.files("edgekit").joinpath("targets.toml").read_text(encoding="utf-8")
    return msgspec.convert(_toml(text), _Facts)


def _toml(text: str) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return dict(toml.loads(text))


@cache
def architectures() -> dict[int, Architecture]:
    """Every GPU generation by compute capability."""
    return {a.sm: a for a in _facts().architectures}


@cache
def jetpacks() -> dict[str, JetPack]:
    """Every JetPack release by version, oldest first."""
    return {j.version: j for j in _facts().jetpacks}


@cache
def targets() -> dict[str, Target]:
    """Every board and card by name."""
    return {name: msgspec.structs.replace(t, name=name) for name, t in _facts().targets.items()}


def target_of(name: str) -> Target:
    """The target called `name`: a board or card ("orin-nx"), an architecture ("rtx-ada"), or "sm_87" / "8.7".

    Raises:
        UsageError: no such target; the nearest name is offered.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    known = targets()
    if wanted in known:
        return known[wanted]
    for architecture in architectures().values():
        if architecture.alias and wanted == architecture.alias:
            return generic(architecture.sm)
    number = re.fullmatch(r"(?:sm-?|cc-?)?(\d{2,3}|\d{1,2}\.\d)[af]?", wanted)
    if number is not None:
        return generic(int(number[1].replace(".", "")))
    raise UsageError(f"Target '{name}' is not known. {_nearest(wanted)}")


def generic(sm: int) -> Target:
    """The target that stands for every GPU of one compute capability. Raises UsageError for an unknown one."""
    architecture = architectures().get(sm)
    if architecture is None:
        have = ", ".join(f"sm_{s}" for s in architectures())
        raise UsageError(f"Target 'sm_{sm}' is not known; compute capabilities are {have}.")
    return Target(name=f"sm_{sm}", title=f"any {architecture.name} GPU", family="generic", sm=sm)


def target_of_gpu(gpu: str, sm: int, *, board: str = "") -> Target:
    """The target for a GPU as its driver names it ("NVIDIA H200"), else the generic one for `sm`.

    `board` is the Jetson's own name; the module's memory and mode are not in it, so it stays generic.
    """
    if board or "laptop" in gpu.lower():  # laptop chips have other clocks than the card of the same name
        return generic(sm)
    words = gpu.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "").split()
    for end in range(len(words), 0, -1):
        found = targets().get("-".join(words[:end]))
        if found is not None and found.sm == sm:
            return found
    return generic(sm)


def _nearest(wanted: str) -> str:
    names = [*targets(), *(a.alias for a in architectures().values() if a.alias), THIS]
    if wanted.startswith("sm"):
        names += [f"sm_{sm}" for sm in architectures()]
    bare = {n.replace("-", ""): n for n in names}
    close = difflib.get_close_matches(wanted.replace("-", ""), bare, 1, cutoff=0.6)
    if close:
        return f"Did you mean '{bare[close[0]]}'?"
    return "List them with: edgekit compile --targets"
