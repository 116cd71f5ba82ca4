from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plugins_trt.errors import MissingLibraryError
from plugins_trt.launch import Launcher
from plugins_trt.registry import operator, operators
from tests.data import ROOT
from tests.plugins_trt.on_device import assert_all_agree

STUB = Path(__file__).with_name("driver.c")


def test_kernels_are_launched_with_their_arguments_in_order(tmp_path: Path) -> None:
    """On a stand-in for the driver, which runs the host's build of the kernel with what it is given."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc), to stand in for the CUDA driver")
    library = tmp_path / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(STUB), "-ldl"]
    subprocess.run([compiler, *options], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.plugins_trt.on_stub"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("layer_norm_residual_sum", "layer_norm_residual_int8", "group_norm_silu")
    expected = sum(len(operator(name).small_examples()) for name in names)
    assert f"{expected} launches agree, 0 things left on the GPU, 0 after an error" in done.stdout
    assert "refused: The CUDA driver says CUDA_ERROR_NOT_FOUND." in done.stdout


def test_without_a_gpu_it_says_so() -> None:
    from edgekit.gpu import this_gpu

    if this_gpu() is not None:
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(MissingLibraryError, match="needs an NVIDIA GPU and its driver"):
        Launcher()


@pytest.mark.gpu
@pytest.mark.parametrize("name", operators())
def test_every_tactic_agrees_with_the_reference_on_the_gpu(name: str) -> None:
    launches = assert_all_agree([operator(name)])
    assert launches > 0


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
@pytest.mark.parametrize("name", operators())
def test_compute_sanitizer_finds_nothing(name: str, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "3", sys.executable, "-m", "tests.plugins_trt.on_device"]
    done = subprocess.run([*command, name, "--tactics", "1"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
