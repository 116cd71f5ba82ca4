"""CUDA shared memory: on a stub of the driver with the real bindings, and refused where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.runtime.cuda import device_count
from edgekit.serve.cuda_memory import CudaMemory
from edgekit.serve.messages import RequestError
from tests.runtime.on_stub.driver import assert_passes_on_stub
from tests.serve.running import Client

CHECKS = Path(__file__).with_name("check_cuda_memory.py")


def test_regions_of_a_gpu_on_a_stub_of_the_driver(tmp_path: Path) -> None:
    assert_passes_on_stub(str(CHECKS), folder=tmp_path)


def test_without_a_gpu_it_is_refused_with_what_to_do(client: Client) -> None:
    if device_count():
        pytest.skip("this machine has a GPU")
    assert CudaMemory().status() == []
    with pytest.raises(RequestError, match="use system shared memory") as caught:
        CudaMemory().register("r", b"x" * 64, 0, 1)
    assert caught.value.status == 501
    assert "cuda_shared_memory" not in client.ask("GET", "/v2").json["extensions"]


def test_the_driver_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, edgekit.serve.server; assert not [m for m in sys.modules if m.partition('.')[0] == 'cuda']"
    subprocess.run([sys.executable, "-c", code], check=True)
