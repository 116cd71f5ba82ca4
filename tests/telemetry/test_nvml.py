from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.telemetry.nvml import find_nvml

STUB = r"""
/* Stands for the driver's library: one GPU, 5 J further at each reading of its counter. */
static unsigned long long energy_mj = 1000;
#define OK 0
#define UNKNOWN 999
int nvmlInitWithFlags(unsigned f) { return OK; }
int nvmlInit_v2(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(unsigned long)(i + 1); return OK; }
static int copy(char *out, const char *text) { while ((*out++ = *text++)); return OK; }
int nvmlDeviceGetUUID(void *h, char *out, unsigned n) { return copy(out, "GPU-1234"); }
int nvmlDeviceGetName(void *h, char *out, unsigned n) { return copy(out, "Test GPU"); }
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
  if (ENERGY != OK) return ENERGY;
  *mj = energy_mj; energy_mj += 5000; return OK;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 70500; return OK; }
int nvmlDeviceGetTemperature(void *h, int kind, unsigned *c) { *c = 41; return OK; }
const char *nvmlErrorString(int code) { return "Not Supported"; }
"""


def run_with_stub(folder: Path, code: str, *, gpus: int = 1, energy: int = 0) -> str:
    """Run `code` with the real nvidia-ml-py on a stub of the driver's library."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install nvidia-ml-py")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "stub.c").write_text(STUB)
    defines = [f"-DGPUS={gpus}", f"-DENERGY={energy}"]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", *defines, str(folder / "stub.c"), "-o", str(library)], check=True
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_gpu_gives_joules_watts_and_degrees(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry.nvml import find_nvml
found = find_nvml()
(gpu,) = found.sensors
a, b = gpu.read(), gpu.read()
print(gpu.name, gpu.scope, gpu.part, gpu.source, b.energy_j - a.energy_j, a.power_w, a.temp_c, found.reasons)
"""
    assert run_with_stub(tmp_path, code) == "nvml-GPU-1234 GPU board Test GPU gpu counter 5.0 70.5 41.0 ()"


def test_a_gpu_without_a_counter_is_a_sentence(tmp_path: Path) -> None:
    code = "from edgekit.telemetry.nvml import find_nvml\nprint(find_nvml())"
    out = run_with_stub(tmp_path, code, energy=3)  # NVML_ERROR_NOT_SUPPORTED, what Orin answers
    assert "sensors=()" in out
    assert "no energy counter" in out


def test_a_driver_without_gpus_is_a_sentence(tmp_path: Path) -> None:
    code = "from edgekit.telemetry.nvml import find_nvml\nprint(find_nvml().reasons[0])"
    assert run_with_stub(tmp_path, code, gpus=0) == "NVML: the driver shows no GPU."


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
