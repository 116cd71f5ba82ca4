"""Run by test_cuda.py in a process of its own, with the real cuda-bindings on a stub of the driver."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BackendError, UsageError
from edgekit.runtime.cuda import Gpu, device_count
from edgekit.runtime.cuda_errors import NEXT_STEP, CudaError, checked
from tests.runtime.on_stub.driver import Stub


def test_a_gpu_tells_what_it_is(stub: Stub) -> None:
    stub.machine(gpus=2, shares_memory=True)
    assert device_count() == 2
    with Gpu(1) as gpu:
        assert (gpu.name, gpu.sm, gpu.integrated) == ("Stub GPU 1", 87, True)
        assert gpu.memory() == (1000, 2000)


def test_a_number_that_no_gpu_has(stub: Stub) -> None:
    stub.machine(gpus=2)
    with pytest.raises(UsageError, match="cuda:5 does not exist; this machine has cuda:0 to cuda:1"):
        Gpu(5)
    stub.machine(gpus=0)
    assert device_count() == 0
    with pytest.raises(BackendError, match="CUDA_ERROR_NO_DEVICE.*--gpus all"):
        Gpu(0)


def test_bytes_go_in_and_out(gpu: Gpu, stub: Stub) -> None:
    there, back, memory = gpu.host_memory(64), gpu.host_memory(64), gpu.device_memory(64)
    there.array("float32", (4, 4))[:] = np.arange(16).reshape(4, 4)
    with gpu.stream() as stream:
        stream.to_device(memory.address, there.address, 64)
        stream.to_host(back.address, memory.address, 64)
        stream.synchronize()
    np.testing.assert_array_equal(back.array("float32", (16,)), np.arange(16))
    copies = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize")
    assert stub.calls(*copies) == ["cuMemcpyHtoDAsync s1 64", "cuMemcpyDtoHAsync s1 64", "cuStreamSynchronize s1"]


def test_an_empty_copy_asks_for_nothing(gpu: Gpu, stub: Stub) -> None:
    with gpu.stream() as stream:
        stream.to_device(0, 0, 0)
        stream.to_host(0, 0, 0)
    assert stub.calls("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync") == []


def test_streams_do_not_wait_for_the_default_stream(gpu: Gpu, stub: Stub) -> None:
    gpu.stream()
    assert stub.calls() == ["cuStreamCreate flags 1"]


def test_arrays_of_every_type_lie_in_host_memory(gpu: Gpu) -> None:
    memory = gpu.host_memory(256)
    for dtype, shape in (("float32", (2, 3)), ("bfloat16", (4,)), ("bool", (5,)), ("int64", ()), ("uint8", (0, 3))):
        view = memory.array(dtype, shape)
        assert view.shape == shape
        view[...] = 1
        assert view.flags.writeable


def test_mapped_memory_is_seen_by_both(gpu: Gpu, stub: Stub) -> None:
    memory = gpu.host_memory(16, mapped=True)
    assert memory.device_address == memory.address
    assert stub.calls() == ["cuMemHostAlloc 256 flags 3", "cuMemHostGetDevicePointer"]
    assert gpu.host_memory(16).device_address == 0


def test_memory_that_cannot_be_mapped_is_given_back(gpu: Gpu, stub: Stub) -> None:
    before = stub.live
    stub.fail("cuMemHostGetDevicePointer", 1)
    with pytest.raises(CudaError, match="map host memory"):
        gpu.host_memory(16, mapped=True)
    assert stub.live == before


def test_events_order_streams_and_measure(gpu: Gpu, stub: Stub) -> None:
    first, second = gpu.stream(), gpu.stream()
    start, end = gpu.event(timing=True), gpu.event(timing=True)
    first.record(start)
    second.wait(start)
    second.record(end)
    end.synchronize()
    assert end.milliseconds_since(start) == 1.5
    order = stub.calls("cuEventRecord", "cuStreamWaitEvent")
    assert order == ["cuEventRecord s1", "cuStreamWaitEvent s2", "cuEventRecord s2"]


def test_a_graph_repeats_what_was_recorded(gpu: Gpu, stub: Stub) -> None:
    host, memory, stream = gpu.host_memory(4), gpu.device_memory(4), gpu.stream()
    value = host.array("int32", (1,))

    def copies() -> None:
        stream.to_device(memory.address, host.address, 4)

    graph = gpu.graph(stream, copies)
    value[0] = 7
    graph.launch(stream)
    back = gpu.host_memory(4)
    stream.to_host(back.address, memory.address, 4)
    stream.synchronize()
    assert back.array("int32", (1,))[0] == 7
    recorded = [c for c in stub.calls() if "Capture" in c or "Graph" in c]
    assert recorded == [
        "cuStreamBeginCapture s1 mode 1",
        "cuStreamEndCapture s1",
        "cuGraphInstantiate nodes 1",
        "cuGraphDestroy",
        "cuGraphLaunch s1",
    ]


@pytest.mark.parametrize("call", ["cuStreamEndCapture", "cuGraphInstantiate", "cuStreamBeginCapture"])
def test_what_cannot_be_recorded_leaves_a_usable_stream(gpu: Gpu, stub: Stub, call: str) -> None:
    stream = gpu.stream()
    stub.fail(call, 900)
    with pytest.raises(CudaError) as error:
        gpu.graph(stream, lambda: None)
    assert error.value.capture
    stream.synchronize()


def test_a_failure_while_recording_ends_the_recording(gpu: Gpu, stub: Stub) -> None:
    stream, before = gpu.stream(), stub.live

    def work() -> None:
        raise BackendError("no")

    with pytest.raises(BackendError, match="^no$"):
        gpu.graph(stream, work)
    stream.synchronize()
    assert stub.live == before


def test_out_of_memory_says_what_helps(gpu: Gpu, stub: Stub) -> None:
    stub.fail("cuMemAlloc", 2)
    with pytest.raises(
        CudaError, match=r"CUDA could not take 512 bytes of GPU memory: CUDA_ERROR_OUT_OF_MEMORY\. Send"
    ):
        gpu.device_memory(300)
    stub.fail("cuMemHostAlloc", 2)
    with pytest.raises(CudaError, match="lock 256 bytes of host memory"):
        gpu.host_memory(1)


@pytest.mark.parametrize("code", [1, 4, 201, 700, 719, 802, 900, 999, 123456])
def test_every_code_is_a_named_error_with_a_next_step(gpu: Gpu, stub: Stub, code: int) -> None:
    from cuda.bindings import driver

    stream = gpu.stream()
    stub.fail("cuStreamSynchronize", code)
    with pytest.raises(BackendError) as error:
        stream.synchronize()
    known = {int(e): e.name for e in driver.CUresult}
    assert known.get(code, f"an error that cuda-bindings does not know ({code}") in str(error.value)
    assert str(error.value).endswith((".", ")"))


def test_a_driver_that_is_too_old_for_a_call_says_so(gpu: Gpu) -> None:
    with pytest.raises(CudaError, match=r"CUDA_ERROR_NOT_FOUND .*upgrade it"):
        checked(gpu.cuda.cuStreamGetId(gpu.stream().raw), "number a stream")


def test_the_next_steps_are_for_errors_that_exist() -> None:
    from cuda.bindings import driver

    newer = {"CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER"}  # than cuda-bindings 12
    assert set(NEXT_STEP) <= {e.name for e in driver.CUresult} | newer


def test_everything_is_released_once_newest_first(stub: Stub) -> None:
    before = stub.live
    gpu = Gpu()
    memory, stream = gpu.device_memory(8), gpu.stream()
    gpu.host_memory(8)
    gpu.event()
    gpu.graph(stream, lambda: None)
    memory.close()
    memory.close()
    assert memory.closed
    assert gpu.held == 4
    stub.clear()
    gpu.close()
    gpu.close()
    assert [c.split()[0] for c in stub.calls()] == [
        "cuGraphExecDestroy",
        "cuEventDestroy",
        "cuMemFreeHost",
        "cuStreamDestroy",
        "cuDevicePrimaryCtxRelease",
    ]
    assert stub.live == before
    with pytest.raises(BackendError, match="closed"):
        gpu.stream()


def test_a_release_that_fails_goes_on_with_the_rest(stub: Stub) -> None:
    gpu = Gpu()
    gpu.device_memory(8)
    stream = gpu.stream()
    stub.fail("cuStreamDestroy", 700)
    gpu.close()
    assert stream.closed
    assert "cuMemFree" in stub.calls()
