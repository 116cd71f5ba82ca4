from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from edgekit.gpu import this_gpu
from tests.data import ROOT
from tests.runtime.on_stub.driver import stub_environment


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    if this_gpu() is not None:
        pytest.skip("needs a machine without a GPU")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "scripts/gpu_check.py", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "No NVIDIA GPU with its driver is found here, so nothing can be checked.\n"
    assert not out.exists()


def test_on_a_stub_of_the_driver_the_figures_are_written(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    only = ["--only", "cuda,onnxruntime", "--seconds", "0.05", "--out", str(out)]
    command = [sys.executable, "scripts/gpu_check.py", *only]
    done = subprocess.run(command, cwd=ROOT, env=stub_environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    assert (written["gpu"], written["sm"]) == ("Stub GPU 0", 87)
    cuda = written["checks"]["cuda"]
    assert cuda["ok"]
    assert cuda["copies_exact"]
    assert cuda["in_and_out_two_streams_gb_s"] > 0
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert written["checks"]["onnxruntime"]["ok"] is None
        assert "pip install 'edgekit[gpu]'" in written["checks"]["onnxruntime"]["reason"]


@pytest.mark.parametrize(
    ("require", "code", "words"), [("", 0, "SKIPPED [1]"), ("gpu", 1, "but this test did not run")]
)
def test_a_required_gpu_makes_a_skip_a_failure(require: str, code: int, words: str) -> None:
    if this_gpu() is not None:
        pytest.skip("needs a machine without a GPU")
    test = "tests/runtime/test_gpu.py::test_bytes_and_graphs_on_the_gpu"
    environment = {**os.environ, "EDGEKIT_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert words in done.stdout
    assert "needs an NVIDIA GPU and its driver" in done.stdout
