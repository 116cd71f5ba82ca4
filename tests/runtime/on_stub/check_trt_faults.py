"""Run by test_trt.py in a process of its own: what goes wrong with engines, memory and the GPU."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BackendError, ModelError, UsageError
from edgekit.runtime.trt import TrtSession
from tests.runtime.on_stub import fake_trt
from tests.runtime.on_stub.driver import Stub
from tests.runtime.on_stub.sessions import rows, session

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (fake_trt.engine(sm=86), BackendError, r"built for sm_86, and this GPU is sm_87\. Build it on this machine"),
        (fake_trt.engine(version="10.3.0"), BackendError, "built by another TensorRT. Build it on this machine"),
        (fake_trt.engine()[:50], ModelError, "damaged or cut short"),
        (fake_trt.engine(types={"x": "fp8"}), ModelError, "'x' of engine 'fp16' is of type FP8"),
    ],
)
def test_an_engine_that_does_not_load_says_what_to_do(data: bytes, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        TrtSession(data, module=fake_trt, variant="fp16")


def test_memory_that_does_not_suffice_at_opening(stub: Stub) -> None:
    stub.fail("cuMemAlloc", 2)
    with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY.*open fewer sessions"):
        session()
    fake_trt.refuse.add("context")
    with pytest.raises(BackendError, match="out of memory while running 'fp16'"):
        session()


def test_memory_that_does_not_suffice_at_a_run_leaves_a_usable_session(stub: Stub) -> None:
    with session() as s:
        stub.fail("cuMemHostAlloc", 2)
        with pytest.raises(BackendError, match="OUT_OF_MEMORY"):
            s.run(rows(1))
        fake_trt.refuse.add("execute")
        with pytest.raises(BackendError, match="out of memory while running 'fp16'. Send smaller batches"):
            s.run(rows(1))
        fake_trt.refuse.clear()
        for i in range(4):
            np.testing.assert_array_equal(s.run(rows(1, i))["y"], np.full((1, 3), 4.0 * i))


def test_a_gpu_that_fails_during_a_run_is_named(stub: Stub) -> None:
    with session() as s:
        stub.fail("cuStreamSynchronize", 700)
        with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
            s.run(rows(1))


def test_a_failure_is_told_to_the_one_who_started_the_run(stub: Stub) -> None:
    with session(slots=1, graphs=False) as s:
        first = s.submit(rows(1))
        stub.fail("cuStreamSynchronize", 719)
        second = s.submit(rows(1, 3.0))
        assert second.result()["y"][0, 0] == 12.0
        with pytest.raises(BackendError, match="LAUNCH_FAILED"):
            first.result()


def test_a_refused_shape_is_a_sentence() -> None:
    with session() as s:
        fake_trt.refuse.add("shape")
        with pytest.raises(BackendError, match="TensorRT failed while running 'fp16': Static dimension mismatch"):
            s.run(rows(1))


def test_closing_waits_for_runs_and_is_final() -> None:
    s = session()
    pending = s.submit(rows(1))
    s.close()
    s.close()
    assert pending.result()["y"][0, 0] == 4.0
    with pytest.raises(BackendError, match="closed"):
        s.run(rows(1))


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match="runs on a GPU, but device is cpu"):
        session(device="cpu")
    with pytest.raises(UsageError, match="slots is 0"):
        session(slots=0)
    with pytest.raises(UsageError, match="cuda:7 does not exist"):
        session(device="cuda:7")
