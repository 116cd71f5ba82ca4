from __future__ import annotations

import pytest

from plugins_trt.compile import compiled_source, macro_text, nvrtc_version, resources_from_log, supported_targets
from plugins_trt.errors import CompileError, UnsupportedTargetError

SCALE = (
    '#include "device.cuh"\nextern "C" __global__ void scale(const T* x, i32 n, T* y) {\n    y[0] = FACTOR * x[n];\n}\n'
)
HEAVY = """
extern "C" __global__ void __launch_bounds__(1024) heavy(const float* x, int n, float* y) {
    float held[128], sum = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) held[i] = x[i * n + threadIdx.x];
#pragma unroll
    for (int i = 0; i < 128; ++i) sum += held[i] * held[127 - i] * x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; ++i) y[i * n + threadIdx.x] = held[i] * sum;
}
"""


def test_a_kernel_becomes_ptx_and_machine_code_for_its_target() -> None:
    made = compiled_source(SCALE, file_name="scale.cu", entry="scale", constants={"T": "float", "FACTOR": -2.5}, sm=90)
    assert ".target sm_90" in made.ptx
    assert ".entry scale(" in made.ptx
    assert made.cubin[:4] == b"\x7fELF"
    assert 4 <= made.resources.registers <= 32
    assert not made.resources.spills


def test_constants_reach_the_kernel_exactly() -> None:
    assert macro_text(1e-5) == "(1e-05f)"
    assert macro_text(-3) == "(-3)"
    assert macro_text("f16") == "f16"
    with pytest.raises(CompileError, match="finite"):
        macro_text(float("nan"))


def test_a_mistake_is_shown_with_file_line_and_the_compilers_words() -> None:
    with pytest.raises(
        CompileError, match=r'(?s)scale\.cu does not compile for sm_87:\nscale\.cu\(3\): error: .*"FACTOR"'
    ):
        compiled_source(SCALE, file_name="scale.cu", entry="scale", constants={"T": "float"}, sm=87)


def test_a_kernel_of_another_name_is_reported() -> None:
    constants = {"T": "float", "FACTOR": 1}
    with pytest.raises(CompileError, match="no kernel called other"):
        compiled_source(SCALE, file_name="scale.cu", entry="other", constants=constants, sm=87)


@pytest.mark.parametrize(("sm", "why"), [(72, "older than the kernels support"), (999, "not known to NVRTC")])
def test_a_target_that_is_not_there_is_refused_with_those_that_are(sm: int, why: str) -> None:
    with pytest.raises(UnsupportedTargetError, match=f"sm_{sm} is {why}.*75, 80"):
        compiled_source(SCALE, file_name="scale.cu", entry="scale", constants={"T": "float", "FACTOR": 1}, sm=sm)


def test_every_target_that_is_promised_is_there() -> None:
    assert {75, 80, 87, 89, 90, 100, 110, 120} <= set(supported_targets())
    assert nvrtc_version() >= (13, 0)


def test_spills_are_read_from_the_assemblers_report() -> None:
    log = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_75'\n"
        "ptxas info    : Function properties for k\n"
        "ptxas         .     64 bytes stack frame, 48 bytes spill stores, 52 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 64 bytes cumulative stack size, 1024 bytes smem\n"
    )
    found = resources_from_log(log, "k")
    assert (found.registers, found.shared_bytes, found.barriers, found.stack_bytes) == (64, 1024, 1, 64)
    assert (found.spill_store_bytes, found.spill_load_bytes, found.spills) == (48, 52, True)
    with pytest.raises(CompileError, match="does not mention kernel other"):
        resources_from_log(log, "other")


def test_a_kernel_that_needs_too_many_registers_spills() -> None:
    made = compiled_source(HEAVY, file_name="heavy.cu", entry="heavy", constants={}, sm=87)
    assert made.resources.spills
    assert made.resources.registers <= 64
