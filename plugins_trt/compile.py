"""CUDA source to PTX and machine code, through NVRTC: no CUDA toolkit and no GPU needed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from plugins_trt.errors import CompileError, MissingLibraryError, UnsupportedTargetError
from plugins_trt.operator import KernelPlan, Operator, Scalar

HEADERS = ("device.cuh",)
"""What a kernel can include; found beside the kernels of this package."""

OLDEST = 75
"""The oldest compute capability that kernels are written for."""

_BASE = ("--std=c++17", "--ptxas-options=-v")


@dataclass(frozen=True)
class Resources:
    """What one thread or block of a kernel takes of a multiprocessor, as the assembler reports it.

    `spill_*` is what did not fit into registers; `shared_bytes` is static shared memory of a block.
    """

    registers: int
    shared_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    barriers: int

    @property
    def spills(self) -> bool:
        """Whether values are kept in memory for want of registers."""
        return bool(self.spill_store_bytes or self.spill_load_bytes)


@dataclass(frozen=True)
class Compiled:
    """A kernel for one compute capability: PTX (for TensorRT), the machine code of the same source, its resources."""

    entry: str
    sm: int
    ptx: str
    cubin: bytes
    resources: Resources


def compiled_kernel(operator: Operator, plan: KernelPlan, *, sm: int) -> Compiled:
    """The kernel of `operator` for one plan and target. Repeated calls are answered from memory.

    Raises:
        CompileError, UnsupportedTargetError, MissingLibraryError: see `compiled_source`.
    """
    macros = tuple((name, macro_text(value)) for name, value in plan.constants.items())
    return _compiled(operator.source(), operator.kernel_file, plan.entry, macros, sm)


def compiled_source(source: str, *, file_name: str, entry: str, constants: Mapping[str, Scalar], sm: int) -> Compiled:
    """Compile `source` (an `extern "C"` kernel called `entry`) with `constants` as macros.

    Raises:
        CompileError: the compiler refused it; the message has file, line and reason.
        UnsupportedTargetError: a target that is too old, or that this NVRTC does not know.
        MissingLibraryError: NVRTC or its Python bindings are not installed.
    """
    return _compiled(source, file_name, entry, tuple((n, macro_text(v)) for n, v in constants.items()), sm)


def macro_text(value: Scalar) -> str:
    """A constant as C++: 1e-05 becomes 1e-05f, -3 becomes (-3), a str stays."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, float):
        return f"({int(value)})" if value < 0 else str(int(value))
    if value != value or value in (float("inf"), float("-inf")):
        raise CompileError(f"{value} cannot be a constant of a kernel; give a finite number.")
    return f"({value!r}f)"


def device_headers() -> dict[str, str]:
    """Name and text of each header that kernels include."""
    folder = Path(__file__).parent / "kernels"
    return {name: (folder / name).read_text() for name in HEADERS}


def nvrtc_version() -> tuple[int, int]:
    """The release of NVRTC; a driver of an older release than this does not read its PTX."""
    nvrtc = _nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return int(major), int(minor)


def supported_targets() -> tuple[int, ...]:
    """The compute capabilities that this NVRTC compiles for, from `OLDEST` on."""
    nvrtc = _nvrtc()
    _, known = nvrtc.nvrtcGetSupportedArchs()
    return tuple(sorted(int(sm) for sm in known if sm >= OLDEST))


@lru_cache(maxsize=512)
def _compiled(source: str, file_name: str, entry: str, macros: tuple[tuple[str, str], ...], sm: int) -> Compiled:
    nvrtc = _nvrtc()
    known = supported_targets()
    if sm not in known:
        major, minor = nvrtc_version()
        names = ", ".join(map(str, known))
        why = "older than the kernels support" if sm < OLDEST else f"not known to NVRTC {major}.{minor}"
        raise UnsupportedTargetError(f"sm_{sm} is {why}. Targets here: {names}.")
    headers = device_headers()
    contents, included = [text.encode() for text in headers.values()], [name.encode() for name in headers]
    # Not as -D options: NVRTC's own header, which comes first, has template parameters that are called T.
    text = "".join(f"#define {name} {value}\n" for name, value in macros) + f'#line 1 "{file_name}"\n{source}'
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), file_name.encode(), len(headers), contents, included)
    _check(nvrtc, status, "create a program")
    try:
        options = [*_BASE, f"--gpu-architecture=sm_{sm}"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            lines = [line for line in log.strip().splitlines() if line.strip() and "ptxas info" not in line]
            raise CompileError(f"{file_name} does not compile for sm_{sm}:\n" + "\n".join(lines[:30]))
        ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        cubin = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    if f".entry {entry}(" not in ptx:
        raise CompileError(f'{file_name} has no kernel called {entry}: it is declared extern "C" __global__.')
    return Compiled(entry, sm, ptx, cubin, resources_from_log(log, entry))


def resources_from_log(log: str, entry: str) -> Resources:
    """Read what `ptxas -v` says about kernel `entry`. Raises CompileError if it says nothing."""
    found = re.search(rf"Compiling entry function '{re.escape(entry)}'.*?(?=Compiling entry function|\Z)", log, re.S)
    if found is None or "registers" not in found[0]:
        raise CompileError(f"The assembler's report does not mention kernel {entry}; this NVRTC is not supported.")

    def number(pattern: str) -> int:
        match = re.search(pattern, found[0])
        return int(match[1]) if match else 0

    return Resources(
        registers=number(r"Used (\d+) registers"),
        shared_bytes=number(r"(\d+) bytes smem"),
        spill_store_bytes=number(r"(\d+) bytes spill stores"),
        spill_load_bytes=number(r"(\d+) bytes spill loads"),
        stack_bytes=number(r"(\d+) bytes stack frame"),
        barriers=number(r"used (\d+) barriers"),
    )


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()  # loads the library
    except Exception as error:  # ImportError, and the loader's own classes
        raise MissingLibraryError(
            "Compiling kernels needs NVRTC and its Python bindings: pip install 'edgekit[plugins]'."
        ) from error
    return nvrtc


def _check(nvrtc: Any, status: Any, what: str) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC could not {what}: {status.name}.")


def _bytes(size: Any, fill: Any, program: Any) -> bytes:
    _, length = size(program)
    held = bytes(length)
    fill(program, held)  # the bindings write into the bytes object that they are given
    return held


def _text(size: Any, fill: Any, program: Any) -> str:
    return _bytes(size, fill, program).rstrip(b"\0").decode(errors="replace")
