"""What this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgekit import __version__
from edgekit._lazy import available, require
from edgekit.telemetry import Found, find_sensors
from edgekit.telemetry import machine as hardware
from edgekit.telemetry.jetson import identify
from edgekit.telemetry.sysfs import by_number, read_text

Status = Literal["ok", "warn", "missing"]

LITTLE_MEMORY = 2 << 30
LITTLE_DISK = 2 << 30
_LIBCUDA = ("usr/lib/*/libcuda.so.1", "usr/lib/*/*/libcuda.so.1", "usr/lib64/libcuda.so.1", "usr/lib/libcuda.so.1")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what was looked at, how it is, and the exact command that mends it (empty where nothing is to do)."""

    area: str
    name: str
    status: Status
    fact: str
    fix: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a command of edgekit works here; if not, what it lacks and how to get it."""

    name: str
    works: bool
    lacks: tuple[str, ...] = ()
    fix: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found. `can_run` is whether any runtime can run a model here."""

    edgekit: str
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    can_run: bool


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """An optional package: the name it is imported by, the distributions that bring it, its extra, what it is for."""

    module: str
    distributions: tuple[str, ...]
    extra: str
    use: str


DEPENDENCIES = (
    Dependency(
        module="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
        extra="cpu",
        use="runs ONNX variants",
    ),
    Dependency(module="torch", distributions=("torch",), extra="export", use="exports PyTorch models"),
    Dependency(module="onnx", distributions=("onnx",), extra="export", use="reads and rewrites ONNX"),
    Dependency(module="onnxscript", distributions=("onnxscript",), extra="export", use="exports PyTorch models"),
    Dependency(module="safetensors", distributions=("safetensors",), extra="export", use="reads weights"),
    Dependency(module="httptools", distributions=("httptools",), extra="serve", use="parses HTTP"),
    Dependency(module="uvloop", distributions=("uvloop",), extra="serve", use="the server's event loop"),
    Dependency(module="matplotlib", distributions=("matplotlib",), extra="bench", use="draws reports/bench.png"),
    Dependency(
        module="mlperf_loadgen", distributions=("mlcommons-loadgen",), extra="loadgen", use="MLPerf scenarios of bench"
    ),
    Dependency(
        module="cryptography", distributions=("cryptography",), extra="sign", use="signs packages, checks signatures"
    ),
    Dependency(module="fsspec", distributions=("fsspec",), extra="remote", use="reads packages under URLs"),
    Dependency(module="pyarrow", distributions=("pyarrow",), extra="batch", use="writes batch's tables as Parquet"),
    Dependency(module="ray", distributions=("ray",), extra="ray", use="batch and serve on Ray clusters"),
    Dependency(module="pynvml", distributions=("nvidia-ml-py",), extra="telemetry", use="energy of NVIDIA GPUs"),
    Dependency(module="zstandard", distributions=("zstandard",), extra="telemetry", use="captures as .tar.zst"),
    Dependency(module="cuda.bindings", distributions=("cuda-bindings",), extra="plugins", use="compiles CUDA plugins"),
    Dependency(module="tensorrt", distributions=("tensorrt",), extra="trt", use="runs and builds TensorRT engines"),
    Dependency(
        module="tensorrt_rtx_bindings",
        distributions=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt_rtx"),
        extra="rtx",
        use="runs and builds TensorRT-RTX engines",
    ),
)

RUNTIMES = "onnxruntime|tensorrt|tensorrt_rtx_bindings"

NEEDS = {
    "export": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "quantize": ("onnx", "onnxruntime"),
    "compile": ("tensorrt_rtx_bindings|tensorrt",),
    "verify": (RUNTIMES,),
    "run": (RUNTIMES,),
    "batch": (RUNTIMES,),
    "bench": (RUNTIMES,),
    "tune": (RUNTIMES,),
    "serve": (RUNTIMES, "httptools", "uvloop"),
    "inspect": (),
    "pack": (),
    "unpack": (),
    "sign": ("cryptography",),
    "push": (),
    "monitor": (),
    "board": (),
    "plugins": ("cuda.bindings",),
    "doctor": (),
}
"""Command -> import names that it cannot do without; "a|b" is either, the usual one first."""


def examine(root: Path = Path("/"), *, folder: Path | None = None) -> Diagnosis:
    """Look at the machine whose file tree (/proc, /sys, /etc) is at `root`, at this Python, and at `folder`'s disk.

    `folder` None is the working directory. Never fails: what cannot be read is a finding.
    """
    sensors = find_sensors(root)
    findings = (
        *_machine(root, folder or Path.cwd()),
        *_jetson(root),
        *_nvidia(root),
        *_python(root),
        *_providers(),
        *_energy(sensors),
    )
    return Diagnosis(
        edgekit=__version__,
        findings=findings,
        commands=tuple(_command(name, modules) for name, modules in NEEDS.items()),
        can_run=any(available(m) for m in ("onnxruntime", "tensorrt", "tensorrt_rtx_bindings")),
    )


def _ok(area: str, name: str, fact: str) -> Finding:
    return Finding(area=area, name=name, status="ok", fact=fact)


def _machine(root: Path, folder: Path) -> Iterator[Finding]:
    area = "machine"
    yield _ok(area, "system", f"{hardware.system(root)}, kernel {_kernel(root)}")
    kind = hardware.container(root)
    if kind is not None:
        yield _ok(area, "container", f"{kind}; sensors and drivers are visible only if they are passed in")
    cpu = hardware.cpu(root)
    cores = f"{cpu.usable:g} of {cpu.logical} CPUs usable" if cpu.usable != cpu.logical else f"{cpu.logical} CPUs"
    yield _ok(area, "processor", f"{cpu.model}, {cpu.architecture}, {cores}")
    names = ", ".join(cpu.simd) or "none that matter"
    if cpu.fast_int8:
        yield _ok(area, "INT8 speed", f"{names}: 8-bit products run in hardware")
    else:
        yield Finding(
            area=area,
            name="INT8 speed",
            status="warn",
            fact=f"{names}; no VNNI, AMX or dot product, so INT8 gains less on this processor",
            fix="edgekit bench X.edge   (shows what INT8 gains here)",
        )
    memory = hardware.memory(root)
    if memory is None:
        yield Finding(area=area, name="memory", status="warn", fact="/proc/meminfo cannot be read")
    else:
        fact = f"{_gigabytes(memory.total)} in the machine, {_gigabytes(memory.available)} free"
        fact += f", limited to {_gigabytes(memory.limit)}" if memory.limit else ""
        little = min(memory.available, memory.limit or memory.available) < LITTLE_MEMORY
        fix = "stop other programs, or add swap: exporting and compiling may need 2 GB" if little else ""
        yield Finding(area=area, name="memory", status="warn" if little else "ok", fact=fact, fix=fix)
    yield _disk(folder)


def _kernel(root: Path) -> str:
    return read_text(root / "proc/sys/kernel/osrelease") or platform.release()


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(area="machine", name="disk", status="warn", fact=f"'{folder}' cannot be read ({error.strerror})")
    fact = f"{_gigabytes(free)} free at {folder}"
    if free < LITTLE_DISK:
        fix = "free some space: packages and engines of large models take gigabytes"
        return Finding(area="machine", name="disk", status="warn", fact=fact, fix=fix)
    return _ok("machine", "disk", fact)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _jetson(root: Path) -> Iterator[Finding]:
    board = identify(root)
    if board is None:
        return
    yield _ok("jetson", "board", f"{board.model} ({board.family}, {board.soc})")
    if board.l4t is None:
        yield Finding(
            area="jetson",
            name="JetPack",
            status="warn",
            fact="/etc/nv_tegra_release cannot be read, so the release is unknown",
            fix="in a container: docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro ...",
        )
        return
    jetpack = f"JetPack {board.jetpack}" if board.jetpack else "JetPack unknown to this edgekit"
    yield _ok("jetson", "JetPack", f"{jetpack}, L4T {board.l4t}")


def _nvidia(root: Path) -> Iterator[Finding]:
    area = "nvidia"
    version = read_text(root / "proc/driver/nvidia/version") or ""
    release = next((w for w in version.split() if w[:1].isdigit() and "." in w), None)
    gpus = []
    for folder in by_number(root / "proc/driver/nvidia/gpus", "*"):
        lines = (read_text(folder / "information") or "").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), None)
        gpus.append(model or folder.name)
    board = identify(root)
    if board is None and release is None and not gpus:
        fact = "no driver is loaded (no /proc/driver/nvidia); needed for CUDA and TensorRT only"
        yield Finding(area=area, name="driver", status="missing", fact=fact, fix=_driver_fix(root))
        return
    if board is None:
        yield _ok(area, "driver", f"{release or 'version unknown'}" + (f"; {', '.join(gpus)}" if gpus else ""))
    libraries = [path for pattern in _LIBCUDA for path in by_number(root, pattern)]
    if libraries:
        yield _ok(area, "libcuda", f"/{libraries[0].relative_to(root)}")
    else:
        fact = "libcuda.so.1 is not there, so no program can use the GPU"
        yield Finding(area=area, name="libcuda", status="missing", fact=fact, fix=_driver_fix(root))


def _driver_fix(root: Path) -> str:
    board = identify(root)
    if hardware.container(root) is not None:
        return f"in a container: docker run {'--runtime nvidia' if board else '--gpus all'} ..."
    if board is not None:
        return "sudo apt install nvidia-jetpack"
    return "install NVIDIA's driver if there is a GPU (Ubuntu: sudo ubuntu-drivers install)"


def _python(root: Path) -> Iterator[Finding]:
    jetson = identify(root) is not None
    yield _ok("python", "Python", f"{platform.python_version()}, edgekit {__version__}")
    for need in DEPENDENCIES:
        found = _version(need.distributions)
        here = available(need.module)
        if here:
            yield _ok("python", need.module, f"{found or 'version unknown'}; {need.use}")
        else:
            fact = f"not installed; {need.use}"
            if found:
                fact = f"{found} is installed but cannot be imported; {need.use}"
            fix = f"pip install 'edgekit[{need.extra}]'"
            if jetson and need.module == "tensorrt":  # PyPI's wheel does not know Jetson's driver
                fix = (
                    "sudo apt install nvidia-jetpack; make the environment with python3 -m venv --system-site-packages"
                )
            yield Finding(area="python", name=need.module, status="missing", fact=fact, fix=fix)


def _version(distributions: Sequence[str]) -> str | None:
    """The version of the first of these distributions that is installed, without importing it."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _providers() -> Iterator[Finding]:
    if not available("onnxruntime"):
        return
    area, name = "runtime", "ONNX Runtime"
    try:
        onnxruntime = require("onnxruntime", why="run ONNX models")
        providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    except Exception as error:  # a broken installation fails in ways of its own
        fact = f"cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        fix = "pip install --force-reinstall onnxruntime"
        yield Finding(area=area, name=name, status="missing", fact=fact, fix=fix)
        return
    yield _ok(area, name, f"providers in this build: {', '.join(providers)}")


def _energy(found: Found) -> Iterator[Finding]:
    for sensor in found.sensors:
        yield _ok("energy", sensor.name, f"{sensor.scope}, by {sensor.source}")
    for reason in found.reasons:
        name, _, text = reason.partition(": ")
        fact, _, fix = text.partition(". ")
        yield Finding(
            area="energy", name=name, status="missing", fact=fact.rstrip("."), fix=fix.removeprefix("Run: ").rstrip(".")
        )


def _command(name: str, modules: Sequence[str]) -> Command:
    missing = [m.split("|") for m in modules if not any(map(available, m.split("|")))]
    lacks = tuple(" or ".join(either) for either in missing)
    wanted = [either[0] for either in missing]
    extras = dict.fromkeys(d.extra for d in DEPENDENCIES if d.module in wanted)
    fix = f"pip install 'edgekit[{','.join(extras)}]'" if lacks else ""
    return Command(name=name, works=not lacks, lacks=lacks, fix=fix)
