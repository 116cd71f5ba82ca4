from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.telemetry.nvml import find_nvml
from tests.telemetry.nvml_stub import run_with_stub


def test_a_gpu_gives_joules_watts_and_degrees(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry.nvml import find_nvml
found = find_nvml()
(gpu,) = found.sensors
a, b = gpu.read(), gpu.read()
print(gpu.name, gpu.scope, gpu.part, gpu.source, b.energy_j - a.energy_j, a.power_w, a.temp_c, found.reasons)
"""
    assert run_with_stub(tmp_path, code) == "nvml-GPU-1234 GPU board Test GPU gpu counter 5.0 70.5 41.0 ()"


FIRST = """
from edgekit.telemetry.nvml import find_nvml
found = find_nvml()
"""


def test_a_gpu_without_a_counter_is_measured_by_its_power(tmp_path: Path) -> None:
    code = FIRST + "g = found.sensors[0]\nprint(g.source, g.period_s, g.read().power_w, g.read().energy_j, g.scope)"
    assert run_with_stub(tmp_path, code, ENERGY=3) == (
        "power 0.1 81.25 None GPU board Test GPU, instantaneous readings"
    )
    assert run_with_stub(tmp_path, code, ENERGY=3, FIELDS=13) == (
        "power 1.0 70.5 None GPU board Test GPU, readings that are averages of a second"
    )


def test_a_gpu_that_supports_nothing_is_a_sentence(tmp_path: Path) -> None:
    out = run_with_stub(tmp_path, FIRST + "print(found)", BARE=1, FIELDS=3)  # what Orin answers
    assert "sensors=()" in out
    assert "no energy counter" in out


def test_the_scope_of_a_board_with_mig_says_that_instances_are_not_told_apart(tmp_path: Path) -> None:
    out = run_with_stub(tmp_path, FIRST + "print(found.sensors[0].scope)", MIG=3)
    assert out == "GPU board Test GPU (all of its 3 MIG instances)"


def test_gpus_are_chosen_by_uuid_and_an_instance_means_its_board(tmp_path: Path) -> None:
    code = """
from edgekit.errors import UsageError
from edgekit.telemetry.nvml import find_nvml
print(len(find_nvml().sensors))
for uuid in ("GPU-1235", "MIG-77000000-0", "GPU-", "GPU-9"):
    try:
        print([s.name for s in find_nvml(uuid).sensors])
    except UsageError as error:
        print(error)
"""
    assert run_with_stub(tmp_path, code, GPUS=2).splitlines() == [
        "2",
        "['nvml-GPU-1235']",
        "GPU UUID 'MIG-77000000-0' is no GPU or MIG instance here. GPUs: GPU-1234, GPU-1235.",
        "GPU UUID 'GPU-' fits more than one GPU. GPUs: GPU-1234, GPU-1235.",
        "GPU UUID 'GPU-9' is no GPU or MIG instance here. GPUs: GPU-1234, GPU-1235.",
    ]
    assert "['nvml-GPU-1234']" in run_with_stub(tmp_path, code, GPUS=1, MIG=1)


def test_a_driver_without_gpus_is_a_sentence(tmp_path: Path) -> None:
    code = "from edgekit.telemetry.nvml import find_nvml\nprint(find_nvml().reasons[0])"
    assert run_with_stub(tmp_path, code, GPUS=0) == "NVML: the driver shows no GPU."


def test_without_a_driver_the_reason_is_a_sentence() -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install nvidia-ml-py")
    found = find_nvml()
    if found.sensors:
        pytest.skip("this machine has an NVIDIA GPU")
    assert "NVML" in found.reasons[0]
    assert "driver" in found.reasons[0]


def test_without_the_library_the_reason_says_what_to_install() -> None:
    code = """
import sys
sys.modules["pynvml"] = None
from edgekit.telemetry.nvml import find_nvml
print(find_nvml().reasons[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edgekit[telemetry]'" in done.stdout
