"""NVIDIA's real `tensorrt` Python bindings without TensorRT: its libraries are stood in for, so that names can be held
against it on a machine with no GPU."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest


def load_bindings(path: str | Path) -> Any:
    """The extension module at `path`. Loading it twice, or two releases in one process, is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc), to stand in for TensorRT's libraries")
    libs = pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    for library in sorted(Path(libs.__path__[0]).glob("*.so.*"), key=lambda p: "parser" in p.name):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    needed = {n for n in _strings(Path(path)) if n.startswith("libnv")}
    folder = Path(tempfile.mkdtemp(prefix="edgekit-trt-"))
    try:
        source = folder / "stub.c"
        source.write_text("int initLibNvInferPlugins(void *l, const char *n) { return 1; }\n")
        for name in needed:
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run(command, check=True)
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        loader = importlib.machinery.ExtensionFileLoader("tensorrt", str(path))
        spec = importlib.util.spec_from_file_location("tensorrt", str(path), loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return module


def _strings(path: Path) -> set[str]:
    """Names like libnvinfer.so.11 inside an ELF file."""
    import re

    return {m.decode() for m in re.findall(rb"\0(libnv\w+\.so\.\d+)(?=\0)", path.read_bytes())}
