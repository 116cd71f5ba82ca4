from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit._lazy import available
from edgekit.errors import MissingDependencyError
from edgekit.runtime.cuda_errors import CudaError, checked
from tests.runtime.on_stub.driver import assert_passes_on_stub


def test_buffers_streams_and_graphs_on_a_stub_of_the_driver(tmp_path: Path) -> None:
    assert_passes_on_stub("check_cuda.py", folder=tmp_path)


def test_a_machine_without_a_driver_is_told_so() -> None:
    if not available("cuda.bindings"):
        pytest.skip("needs cuda-bindings: pip install cuda-bindings")
    code = (
        "from edgekit.runtime.cuda import device_count, driver\n"
        "if device_count(): print('GPU')\n"
        "else:\n"
        "    try: driver()\n"
        "    except Exception as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout.strip() == "GPU"
        or "BackendError No NVIDIA driver is installed here" in done.stdout
        or ("CudaError CUDA could not start" in done.stdout)
    )


def test_a_machine_without_the_bindings_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['cuda'] = None\n"
        "from edgekit.runtime.cuda import device_count, driver\n"
        "assert device_count() == 0\n"
        "try: driver()\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(MissingDependencyError.__name__)
    assert "pip install cuda-bindings" in done.stdout


def test_results_are_unpacked() -> None:
    assert checked((0, 5), "do it") == 5
    assert checked((0,), "do it") is None
    with pytest.raises(CudaError, match="CUDA could not do it: 999"):
        checked((999,), "do it")
