from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.gpu import this_gpu

DRIVER = """
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGet(int *device, int index) { if (index > 1) return 101; *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  const char *text = device ? "NVIDIA L4" : "Orin"; int i = 0;
  for (; text[i] && i < size - 1; i++) name[i] = text[i];
  name[i] = 0; return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? (device ? 9 : 7) : -1; return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    return compiled(tmp_path, init=0)


def compiled(folder: Path, *, init: int) -> Path:
    """A library with the driver's calls, compiled by the host's compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc), to build a stand-in for the driver")
    (folder / "driver.c").write_text(DRIVER % {"init": init})
    library = folder / f"libcuda-{init}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "driver.c")], check=True)
    return library


def test_the_driver_is_asked(driver: Path, tmp_path: Path) -> None:
    gpu = this_gpu(library=str(driver), root=tmp_path)
    assert gpu is not None
    assert (gpu.name, gpu.sm, gpu.board) == ("Orin", 87, "")
    second = this_gpu(1, library=str(driver), root=tmp_path)
    assert second is not None
    assert (second.name, second.sm) == ("NVIDIA L4", 89)
    assert this_gpu(2, library=str(driver), root=tmp_path) is None


def test_a_jetson_says_which_board(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin NX Engineering Reference\0")
    gpu = this_gpu(library=str(driver), root=tmp_path)
    assert gpu is not None
    assert gpu.board == "NVIDIA Jetson Orin NX Engineering Reference"


def test_without_a_driver_or_with_a_broken_one_there_is_no_gpu(tmp_path: Path) -> None:
    assert this_gpu(library="libno-such-driver.so.1") is None
    assert this_gpu(library=str(compiled(tmp_path, init=999))) is None
