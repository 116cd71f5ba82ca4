from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from plugins_trt.compile import nvrtc_version
from plugins_trt.errors import UnsupportedTargetError
from plugins_trt.limits import MULTIPROCESSORS, multiprocessor, occupancy
from plugins_trt.registry import operator, operators
from plugins_trt.report import kernel_report
from tests.plugins_trt.golden import PATH, measured


@pytest.mark.parametrize(
    ("sm", "threads", "registers", "shared", "blocks", "fraction", "limited_by"),
    [
        (80, 256, 32, 0, 8, 1.0, ("warps", "registers")),
        (80, 256, 33, 0, 6, 0.75, ("registers",)),  # 33 registers are allocated as 40
        (87, 256, 32, 0, 6, 1.0, ("warps",)),
        (75, 1024, 64, 0, 1, 1.0, ("warps", "registers")),
        (90, 32, 16, 0, 32, 0.5, ("blocks",)),
        (89, 128, 32, 48 * 1024, 2, 8 / 48, ("shared memory",)),
        (90, 1024, 65, 0, 0, 0.0, ("registers",)),
    ],
)
def test_occupancy_by_hand(
    sm: int, threads: int, registers: int, shared: int, blocks: int, fraction: float, limited_by: tuple[str, ...]
) -> None:
    found = occupancy(sm, threads=threads, registers=registers, shared_bytes=shared)
    assert (found.blocks, found.fraction, found.limited_by) == (blocks, fraction, limited_by)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UnsupportedTargetError, match="sm_72 are not known here"):
        multiprocessor(72)


NVIDIA = """
#include <cstdio>
#include <cstddef>
#define cudaFuncCachePreferNone 0
#include "cuda_occupancy.h"
int main() {
    int sm, threads_sm, shared_sm, shared_block, reserved, threads, registers, shared;
    while (scanf("%d %d %d %d %d", &sm, &threads_sm, &shared_sm, &shared_block, &reserved) == 5 &&
           scanf("%d %d %d", &threads, &registers, &shared) == 3) {
        cudaOccDeviceProp p = cudaOccDeviceProp();
        p.computeMajor = sm / 10; p.computeMinor = sm % 10; p.maxThreadsPerBlock = 1024; p.warpSize = 32;
        p.maxThreadsPerMultiprocessor = threads_sm; p.regsPerBlock = p.regsPerMultiprocessor = 65536;
        p.sharedMemPerBlock = 49152; p.sharedMemPerMultiprocessor = shared_sm; p.numSms = 1;
        p.sharedMemPerBlockOptin = shared_block; p.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes f = cudaOccFuncAttributes();
        f.maxThreadsPerBlock = 1024; f.numRegs = registers; f.sharedSizeBytes = 0; f.maxDynamicSharedSizeBytes = shared;
        f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; f.partitionedGCConfig = PARTITIONED_GC_OFF;
        cudaOccDeviceState s = cudaOccDeviceState();
        s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult r;
        int status = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared);
        printf("%d\\n", status == 0 ? r.activeBlocksPerMultiprocessor : -status);
    }
}
"""


def cuda_header() -> Path | None:
    """The folder that holds NVIDIA's occupancy calculator, where a CUDA toolkit is installed."""
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda_occupancy.h").exists():
            return Path(root) / "include"
    return None


def test_occupancy_is_what_nvidias_own_calculator_says(tmp_path: Path) -> None:
    include, compiler = cuda_header(), shutil.which("g++")
    if include is None or compiler is None:
        pytest.skip("needs cuda_occupancy.h of a CUDA toolkit (set CUDA_HOME) and g++")
    (tmp_path / "main.cpp").write_text(NVIDIA)
    program = tmp_path / "main"
    subprocess.run([compiler, "-w", f"-I{include}", str(tmp_path / "main.cpp"), "-o", str(program)], check=True)
    rng = np.random.default_rng(0)
    cases = []
    for mp in MULTIPROCESSORS.values():
        for _ in range(200):
            shared = int(rng.choice([0, rng.integers(0, 48 * 1024), rng.integers(0, mp.block_shared_bytes)]))
            cases.append((mp, int(rng.integers(1, 1025)), int(rng.integers(1, 256)), shared))
    lines = [
        f"{mp.sm} {mp.threads} {mp.shared_bytes} {mp.block_shared_bytes} {mp.reserved_bytes} {t} {r} {s}"
        for mp, t, r, s in cases
    ]
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    ours = [occupancy(mp.sm, threads=t, registers=r, shared_bytes=s).blocks for mp, t, r, s in cases]
    assert ours == [int(line) for line in done.stdout.split()]


def test_a_report_says_what_the_kernel_takes_and_what_bounds_it() -> None:
    op = operator("layer_norm_residual")
    report = kernel_report(op, op.example((8, 197, 768), "float16"), sm=87)
    elements = 8 * 197 * 768
    assert report.cost.bytes == 3 * 2 * elements + 2 * 2 * 768
    assert report.cost.flops_per_byte == pytest.approx(8 / 6, rel=0.01)
    assert report.inputs == "float16[8, 197, 768], float16[8, 197, 768], float16[768], float16[768]"
    assert report.time_s(bytes_per_s=204.8e9, flops_per_s=5e12) == pytest.approx(report.cost.bytes / 204.8e9)
    assert report.time_s(bytes_per_s=1e15, flops_per_s=1e9) == pytest.approx(8 * elements / 1e9)


def test_no_kernel_spills_or_loses_occupancy() -> None:
    golden = json.loads(PATH.read_text())
    release = ".".join(map(str, nvrtc_version()))
    if golden["nvrtc"] != release:
        pytest.skip(f"needs NVRTC {golden['nvrtc']}, which the record was made with; this is {release}")
    now = measured()["kernels"]
    assert set(now) == set(operators())
    for name, targets in now.items():
        assert name in golden["kernels"], f"{name} is not recorded: python -m tests.plugins_trt.golden"
        for sm, found in targets.items():
            assert not found["spills"], f"{name} on sm_{sm} spills"
            before = golden["kernels"][name][sm]["occupancy"]
            assert found["occupancy"] >= before, f"{name} on sm_{sm}: occupancy was {before}, is {found['occupancy']}"
