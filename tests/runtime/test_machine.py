from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgekit.gpu import this_gpu
from edgekit.runtime.devices import CPU
from edgekit.runtime.machine import Machine
from tests.runtime.on_stub.driver import assert_passes_on_stub


def test_packages_with_engines_on_a_stub_of_the_driver(tmp_path: Path) -> None:
    assert_passes_on_stub("check_select.py", folder=tmp_path)


def test_without_a_gpu_no_runtime_is_imported() -> None:
    code = (
        "import sys\n"
        "from edgekit.gpu import this_gpu\n"
        "from edgekit.runtime.machine import look\n"
        "here = look(engines=True)\n"
        "if this_gpu() is None:\n"
        "    assert here.gpu == '' and not here.onnx_cuda\n"
        "    assert not {'onnxruntime', 'tensorrt', 'tensorrt_rtx_bindings', 'cuda'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_machine_is_a_cpu_until_a_gpu_is_found() -> None:
    assert Machine().place == CPU
    assert this_gpu(999) is None
