"""Compiles a kernel for the CPU and runs it. See cuda_on_host.h for how, and README.md for what is caught."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins_trt.compile import device_headers, macro_text
from plugins_trt.operator import Call, KernelPlan, Operator, Scalar, numpy_dtype

HERE = Path(__file__).parent
CHECKED = ("-O1", "-fno-tree-vectorize", "-fno-store-merging", "-fsanitize=thread,alignment")
COMMON = ("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-w")


class KernelError(Exception):
    """A kernel did what CUDA forbids: `kind` is "race", "out of bounds", "uninitialised", "misaligned", "read-only",
    "divergent barrier", "bad mask" or "launch"."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(":")[0]


class _Region(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_size_t),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_int32),
        ("initialised", ctypes.c_int32),
        ("name", ctypes.c_char_p),
    )


@dataclass(frozen=True)
class HostKernel:
    """A kernel in a library of this machine. `shared`: name, offset and bytes of each static shared array."""

    library: Any
    shared: tuple[tuple[str, int, int], ...]

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        *,
        scalars: Sequence[int] = (),
        grid: Sequence[int] = (1, 1, 1),
        block: Sequence[int] = (32, 1, 1),
        shared_bytes: int = 0,
        seed: int = 1,
    ) -> None:
        """Launch the kernel with `inputs`, `scalars` and `outputs` as arguments; the outputs are filled in place.

        `seed` decides the order in which threads run.

        Raises:
            KernelError: what the kernel did wrong first.
        """
        held = [*inputs.items(), *outputs.items()]
        buffers = [_aligned(array) for _, array in held]
        for (_, array), buffer in zip(held, buffers):
            buffer[...] = array
        writable = [False] * len(inputs) + [True] * len(outputs)
        regions = (_Region * len(held))(
            *(_Region(b.ctypes.data, b.nbytes, w, not w, n.encode()) for (n, _), b, w in zip(held, buffers, writable))
        )
        shared = (_Region * len(self.shared))(*(_Region(at, size, 1, 0, n.encode()) for n, at, size in self.shared))
        values: list[Any] = [ctypes.c_void_p(b.ctypes.data) for b in buffers[: len(inputs)]]
        values += [ctypes.c_int32(value) for value in scalars]
        values += [ctypes.c_void_p(b.ctypes.data) for b in buffers[len(inputs) :]]
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        size = (ctypes.c_uint * 6)(*grid, *block)
        text = ctypes.create_string_buffer(1024)
        failed = self.library.cuda_on_host_launch(
            self.library.cuda_on_host_entry, arguments, size, ctypes.c_size_t(shared_bytes), ctypes.c_uint64(seed),
            regions, len(regions), shared, len(shared), text, ctypes.c_size_t(len(text)),
        )  # fmt: skip
        if failed:
            raise KernelError(text.value.decode())
        for (_, array), buffer in zip(held[len(inputs) :], buffers[len(inputs) :]):
            array[...] = buffer


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts where TensorRT's buffers do: at a multiple of 256 bytes."""
    raw = np.empty(array.nbytes + 512, np.uint8)
    offset = -raw.ctypes.data % 256
    return raw[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)


def run_operator(
    operator: Operator,
    call: Call,
    *arrays: np.ndarray,
    tactic: int | None = None,
    sm: int = 87,
    seed: int = 1,
) -> tuple[np.ndarray, ...]:
    """The outputs of the operator's kernel for `arrays`, whose types are those of `call`."""
    plan = operator.plan(call, tactic=operator.tactics(call, sm)[0] if tactic is None else tactic, sm=sm)
    return run_plan(operator, call, plan, *arrays, seed=seed)


def run_plan(
    operator: Operator, call: Call, plan: KernelPlan, *arrays: np.ndarray, seed: int = 1
) -> tuple[np.ndarray, ...]:
    """The outputs of one compiled form of the kernel for `arrays`."""
    shapes = [array.shape for array in arrays]
    outputs = [np.zeros(t.sizes, numpy_dtype(t.dtype)) for t in operator.output_types(call)]
    kernel = host_kernel(operator.source(), plan.entry, plan.constants, file_name=operator.kernel_file)
    kernel.run(
        {port.name: array for port, array in zip(operator.inputs, arrays)},
        dict(zip(operator.outputs, outputs)),
        scalars=plan.scalars_for(shapes),
        grid=plan.grid_for(shapes),
        block=plan.block,
        shared_bytes=plan.shared_bytes,
        seed=seed,
    )
    return tuple(outputs)


def host_kernel(
    source: str,
    entry: str,
    constants: Mapping[str, Scalar],
    *,
    file_name: str = "kernel.cu",
    portable: bool = False,
) -> HostKernel:
    """Compile `source` for this machine; the same source and constants are compiled once, and kept between runs.

    `portable` switches threads as processors other than x86-64 do it: slower.
    """
    macros = tuple((name, macro_text(value)) for name, value in constants.items())
    return _kernel(source, entry, macros, file_name, portable)


@cache
def _kernel(source: str, entry: str, macros: tuple[tuple[str, str], ...], file_name: str, portable: bool) -> HostKernel:
    defines = "".join(f"#define {name} {value}\n" for name, value in macros)
    text = (
        f'#include "cuda_on_host.h"\n{defines}#line 1 "{file_name}"\n{source}\n#line 1 "entry"\nextern "C" '
        '__attribute__((visibility("default"), no_sanitize("thread"))) '
        f"void cuda_on_host_entry(void** arguments) {{ cuda_on_host::call(&{entry}, arguments); }}\n"
    )
    own = "".join((HERE / name).read_text() for name in ("cuda_on_host.h", "state.h", "memory.cpp", "scheduler.cpp"))
    parts = [text, own, *device_headers().values(), repr((CHECKED, COMMON, portable))]
    path = _folder() / f"{hashlib.sha256(''.join(parts).encode()).hexdigest()[:24]}.so"
    if not path.exists():
        objects = [_object(name, own, portable) for name in ("memory", "scheduler")]
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            for name, header in device_headers().items():
                (Path(folder) / name).write_text(header)
            (Path(folder) / "kernel.cpp").write_text(text)
            made, compiled = Path(folder) / "kernel.so", f"{folder}/kernel.o"
            options = [f"-I{HERE}", f"-I{folder}"]
            _compile(*COMMON, *CHECKED, *options, "-S", f"{folder}/kernel.cpp", "-o", f"{folder}/kernel.s")
            assembly = Path(folder) / "kernel.s"
            assembly.write_text(_apart(assembly.read_text()))
            _compile("-c", str(assembly), "-o", compiled)
            _compile(*COMMON, compiled, *map(str, objects), "-o", str(made))
            os.replace(made, path)
    library = ctypes.CDLL(str(path))
    return HostKernel(library, _shared_arrays(path))


def _apart(assembly: str) -> str:
    """Assembly whose shared arrays have 256 bytes between them, so that running over one does not reach the next."""
    out, inside = [], False
    for line in assembly.splitlines(keepends=True):
        if re.match(r"\t\.(section|text|data|bss)", line):
            inside = "cuda_shared" in line
        out.append(line)
        if inside and line.startswith("\t.zero"):
            out.append("\t.zero\t256\n")
    return "".join(out)


@cache
def _object(name: str, own: str, portable: bool) -> Path:
    path = _folder() / f"{name}{'-portable' * portable}-{hashlib.sha256(own.encode()).hexdigest()[:24]}.o"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            made = Path(folder) / "made.o"
            options = [option for option in COMMON if option not in ("-shared", "-w")] + ["-DPORTABLE"] * portable
            _compile(*options, "-O2", "-Wall", "-c", str(HERE / f"{name}.cpp"), "-o", str(made))
            os.replace(made, path)
    return path


def _shared_arrays(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, offset and bytes of what the library keeps in section cuda_shared."""
    sections = subprocess.run(["objdump", "-h", str(path)], capture_output=True, text=True, check=True).stdout
    section = re.search(r"cuda_shared\s+([0-9a-f]+)\s+([0-9a-f]+)", sections)
    if section is None:
        return ()
    bytes_, begin = int(section[1], 16), int(section[2], 16)
    symbols = subprocess.run(["nm", "-S", "-C", str(path)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) \w (.+)$", symbols, re.M)
    arrays = [(name, int(at, 16), int(size, 16)) for at, size, name in found]
    return tuple(a for a in arrays if begin <= a[1] < begin + bytes_)


def _compile(*arguments: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None or shutil.which("nm") is None or shutil.which("objdump") is None:
        pytest.skip("needs g++ and binutils, to run CUDA kernels on the CPU")
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the kernel does not compile on the CPU:\n{done.stderr[:4000]}")


@cache
def _folder() -> Path:
    """Where compiled kernels are kept between runs: a folder of this user alone."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "edgekit-tests" / "cuda_on_host"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
