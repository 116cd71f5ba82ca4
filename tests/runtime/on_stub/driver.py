"""The stub of the CUDA driver: how it is compiled, and how a test talks to it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit._lazy import available
from tests.data import ROOT

FOLDER = Path(__file__).parent


def stub_environment(folder: Path) -> dict[str, str]:
    """Compile the stub into `folder`; the environment of processes whose CUDA driver it is."""
    if not available("cuda.bindings"):
        pytest.skip("needs cuda-bindings: pip install cuda-bindings")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc), to stand in for the CUDA driver")
    library, source = folder / "libcuda.so.1", FOLDER / "libcuda.c"
    command = [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "EDGEKIT_REQUIRE": "", "PYTHONPATH": str(ROOT)}


def assert_passes_on_stub(*checks: str, folder: Path) -> None:
    """Run `on_stub/CHECKS` with pytest in a process whose CUDA driver is the stub; every test of them must pass."""
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *(str(FOLDER / c) for c in checks)]
    environment = stub_environment(folder)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-2000:]


class Stub:
    """What the stub was asked for, and what it is told to answer."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._lib.stub_log.restype = ctypes.c_char_p
        self.clear()
        self.machine()
        self.fail("", 0)

    def clear(self) -> None:
        """Forget the calls so far."""
        self._lib.stub_clear()

    def calls(self, *only: str) -> list[str]:
        """The calls since the last `clear`, streams numbered from 1 in the order they appear; `only` those names."""
        lines = self._lib.stub_log().decode().splitlines()
        names: dict[str, str] = {}
        out = []
        for line in lines:
            if only and line.partition(" ")[0] not in only:
                continue
            out.append(re.sub(r"\bs\d+\b", lambda m: names.setdefault(m[0], f"s{len(names) + 1}"), line))
        return out

    def fail(self, name: str, code: int, *, after: int = 0) -> None:
        """Let the next call of `name` (or the one `after` so many) answer `code`, once."""
        self._lib.stub_fail(name.encode(), after, code)

    def machine(self, *, gpus: int = 1, shares_memory: bool = False) -> None:
        """How many GPUs there are, and whether they share the host's memory."""
        self._lib.stub_machine(gpus, int(shares_memory))

    @property
    def live(self) -> int:
        """What is allocated and not released: memory, streams, events, graphs."""
        return int(self._lib.stub_live())
