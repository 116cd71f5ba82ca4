"""Run by test_cuda_memory.py in a process of its own, with the real cuda-bindings on a stub of the driver."""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Iterator

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.runtime.cuda import Gpu
from edgekit.runtime.cuda_errors import checked
from edgekit.serve.cuda_memory import HANDLE_BYTES, CudaMemory
from edgekit.serve.messages import Place, RequestError
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from tests.runtime.on_stub.driver import Stub
from tests.serve.running import Client
from tests.serve.test_server import fake

SIZE = 256


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def client_gpu(stub: Stub) -> Iterator[Gpu]:
    with Gpu() as gpu:
        yield gpu


def handle_of(gpu: Gpu, address: int) -> bytes:
    raw = checked(gpu.cuda.cuIpcGetMemHandle(address), "share memory")
    return ctypes.string_at(int(raw.getPtr()), HANDLE_BYTES)


def test_tensors_come_from_and_go_to_the_gpu(client_gpu: Gpu, stub: Stub) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    httpclient = pytest.importorskip("tritonclient.http")
    there, host = client_gpu.device_memory(SIZE), client_gpu.host_memory(SIZE)
    stream = client_gpu.stream()

    def put(values: list[float]) -> None:
        host.array("float32", (len(values),))[:] = values
        stream.to_device(there.address, host.address, SIZE)
        stream.synchronize()

    def get(at: int, count: int) -> list[float]:
        stream.to_host(host.address, there.address + at, 4 * count)
        stream.synchronize()
        return list(host.array("float32", (count,)).tolist())

    handle = handle_of(client_gpu, there.address)
    before = stub.live
    with Server([Model(fake(), name="net")], port=0, grpc_port=0) as server:
        http = httpclient.InferenceServerClient(server.url.removeprefix("http://"))
        grpc = grpcclient.InferenceServerClient(server.grpc_address)
        sent = base64.b64encode(handle).decode()  # as tritonclient takes it
        http.register_cuda_shared_memory("one", sent, 0, SIZE)
        assert http.get_cuda_shared_memory_status("one") == [{"name": "one", "device_id": 0, "byte_size": SIZE}]
        for module, client, value in ((httpclient, http, 3.0), (grpcclient, grpc, 5.0)):
            put([value, value + 1])
            x, y = module.InferInput("x", [2], "FP32"), module.InferRequestedOutput("y")
            x.set_shared_memory("one", 8)
            y.set_shared_memory("one", 8, offset=128)
            client.infer("net", [x], outputs=[y])
            assert get(128, 2) == [value + 1, value + 2]
        http.unregister_cuda_shared_memory("one")
        grpc.register_cuda_shared_memory("two", sent, 0, SIZE)
        assert set(grpc.get_cuda_shared_memory_status(as_json=True)["regions"]) == {"two"}
        grpc.unregister_cuda_shared_memory()
        assert http.get_cuda_shared_memory_status() == []
        grpc.register_cuda_shared_memory("three", sent, 0, SIZE)  # left to the end of the server
        http.close()
        grpc.close()
    assert stub.live == before
    assert stub.calls("cuIpcOpenMemHandle") == ["cuIpcOpenMemHandle flags 1"] * 3
    assert len(stub.calls("cuIpcCloseMemHandle")) == 3


def test_what_cannot_be_registered_or_does_not_fit(client_gpu: Gpu, stub: Stub) -> None:
    there = client_gpu.device_memory(SIZE)
    handle = handle_of(client_gpu, there.address)
    memory = CudaMemory()
    for arguments, words in (
        (("", handle, 0, SIZE), "needs a name"),
        (("r", b"short", 0, SIZE), "has 5 bytes; expected 64"),
        (("r", handle, 0, 0), "expected some"),
        (("r", handle, 7, SIZE), "cuda:7 does not exist"),
        (("r", handle, 0, 1 << 40), "its allocation has"),
    ):
        with pytest.raises(InputError, match=words):
            memory.register(*arguments)
    stub.fail("cuIpcOpenMemHandle", 201)
    with pytest.raises(InputError, match="'r' cannot be opened: CUDA could not open"):
        memory.register("r", handle, 0, SIZE)
    memory.register("r", handle, 0, SIZE)
    with pytest.raises(InputError, match="registered already"):
        memory.register("r", handle, 0, SIZE)
    with pytest.raises(InputError, match="would end at byte 264"):
        memory.read("Input 'x'", Place("r", 8, SIZE), memoryview(bytearray(SIZE)))
    with pytest.raises(InputError, match="would end at byte 257"):
        memory.write("Output 'y'", Place("r", 256, 1), memoryview(np.zeros(1, np.uint8)))
    opened, closed = stub.calls("cuIpcOpenMemHandle"), stub.calls("cuIpcCloseMemHandle")
    assert len(opened) - len(closed) == 2  # one failed, one is open
    memory.close()
    assert memory.status() == []


def test_bad_requests_are_the_clients_fault(client_gpu: Gpu) -> None:
    path = "/v2/cudasharedmemory/region/r/register"
    with Server([Model(fake(), name="net")], port=0) as server, Client(server.url) as client:
        for body in ({}, {"raw_handle": {"b64": "é!"}, "byte_size": 1}, {"raw_handle": "x", "byte_size": 1}):
            assert client.ask("POST", path, json.dumps(body).encode()).status == 400


def test_a_server_that_others_reach_and_one_without_a_gpu_refuse(stub: Stub) -> None:
    with pytest.raises(RequestError, match="open to other machines") as caught:
        CudaMemory(allowed=False).register("r", b"x" * 64, 0, 1)
    assert caught.value.status == 403
    stub.machine(gpus=0)
    with pytest.raises(RequestError, match="shares no CUDA memory") as caught:
        CudaMemory().register("r", b"x" * 64, 0, 1)
    assert caught.value.status == 501
