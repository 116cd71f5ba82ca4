"""The door as grpcio's own clients see it: statuses, deadlines, cancelling, coding, sizes, shutting down."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from edgekit.errors import EdgekitError
from edgekit.runtime.ort import OrtSession
from edgekit.serve.grpc.schema import schema
from edgekit.serve.h2.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from tests.serve.running import Running, served
from tests.tiny import tiny_model, tiny_package

SERVICE = "/inference.GRPCInferenceService"


def request(model: str = "tiny", x: np.ndarray | None = None, **fields: Any) -> Any:
    x = np.ones((1, 4), np.float32) if x is None else x
    out = pb.ModelInferRequest(model_name=model, **fields)
    out.inputs.add(name="x", datatype="FP32", shape=x.shape)
    out.raw_input_contents.append(x.tobytes())
    return out


def unary(channel: Any, method: str = "ModelInfer", answer: Any = pb.ModelInferResponse) -> Any:
    return channel.unary_unary(
        f"{SERVICE}/{method}",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=answer.FromString,
    )


@pytest.fixture
def channel(server: Running) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as out:
        yield out


@pytest.fixture
def slow() -> Iterator[Server]:
    """A server whose model takes as long as `hold` says: an event that its runs wait for."""
    with Server([Model(Held(), name="tiny")], port=0, grpc_port=0) as server:
        yield server


class Held:
    """A session that waits, up to ten seconds, until it is let go."""

    free = threading.Event()
    runs = 0

    def __init__(self) -> None:
        self._session = OrtSession(tiny_model().SerializeToString(), threads=1)
        self.inputs, self.outputs = self._session.inputs, self._session.outputs
        self.variant, self.device = "held", "test"
        Held.free = threading.Event()
        Held.runs = 0

    def run(self, feed: Any) -> Any:
        Held.runs += 1
        assert Held.free.wait(10)
        return self._session.run(feed)

    def close(self) -> None:
        self._session.close()


def test_statuses_and_messages(channel: Any) -> None:
    cases = [
        (request("100% nöthing\n"), grpc.StatusCode.NOT_FOUND, "Model '100% nöthing\n' is not served here"),
        (request(model_version="7"), grpc.StatusCode.NOT_FOUND, "no version '7'"),
        (request(x=np.ones((1, 5), np.float32)), grpc.StatusCode.INVALID_ARGUMENT, "got (1,5)"),
        (pb.ModelInferRequest(model_name="tiny"), grpc.StatusCode.INVALID_ARGUMENT, "Input 'x' is missing"),
    ]
    for message, status, words in cases:
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(message)
        assert caught.value.code() == status
        assert words in caught.value.details()
    long = "x" * 5000
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(request(long))
    assert len(caught.value.details()) < 700


def test_unknown_methods_and_bytes_that_are_no_message(channel: Any) -> None:
    for path in (f"{SERVICE}/Nothing", "/other.Service/ModelInfer", f"{SERVICE}/ModelInfer/"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    for path in (f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelReady", "/grpc.health.v1.Health/Check"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"\x0a\xff\xff")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_raw_tensors_must_be_as_many_as_inputs(channel: Any) -> None:
    message = request()
    message.raw_input_contents.append(b"more")
    with pytest.raises(grpc.RpcError, match="holds 2 tensors, which is more than there are inputs"):
        unary(channel)(message)
    message = request()
    message.inputs.add(name="y", datatype="FP32", shape=[1])
    with pytest.raises(grpc.RpcError, match="Input 'y' has no data"):
        unary(channel)(message)
    message = request()
    message.inputs[0].contents.fp32_contents.append(1)
    with pytest.raises(grpc.RpcError, match="Input 'x' has contents"):
        unary(channel)(message)


def test_the_health_service(channel: Any) -> None:
    method = schema().methods[b"/grpc.health.v1.Health/Check"]
    ask = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=method.response.FromString,
    )
    assert ask(method.request()).status == 1
    assert ask(method.request(service="inference.GRPCInferenceService")).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        ask(method.request(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_metadata_and_a_generous_deadline_change_nothing(channel: Any) -> None:
    for i in range(5):
        answer = unary(channel)(request(), timeout=5 + i, metadata=[("x-request", str(i)), ("token-bin", b"\xff\0")])
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [1.5, 1.5, 1.5]


def test_a_deadline_ends_the_call_and_the_run_is_given_up(slow: Server) -> None:
    with grpc.insecure_channel(slow.grpc_address) as channel:
        first = unary(channel).future(request())
        while not Held.runs:
            time.sleep(0.01)
        begun = time.perf_counter()
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(request(), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0.1 < time.perf_counter() - begun < 5
        time.sleep(0.1)
        Held.free.set()
        assert first.result(timeout=10).raw_output_contents
        assert unary(channel)(request(), timeout=10).raw_output_contents
    assert Held.runs == 2  # the one whose time was over never ran


def test_cancelled_calls_do_not_run(slow: Server) -> None:
    with grpc.insecure_channel(slow.grpc_address) as channel:
        first = unary(channel).future(request())
        while not Held.runs:
            time.sleep(0.01)
        others = [unary(channel).future(request()) for _ in range(5)]
        time.sleep(0.2)
        for call in others:
            call.cancel()
        time.sleep(0.2)
        Held.free.set()
        assert first.result(timeout=10).raw_output_contents
        assert unary(channel)(request()).raw_output_contents
    assert Held.runs == 2


def test_a_client_that_leaves_takes_its_calls_with_it(slow: Server) -> None:
    with grpc.insecure_channel(slow.grpc_address) as stays:
        first = unary(stays).future(request())
        while not Held.runs:
            time.sleep(0.01)
        leaving = grpc.insecure_channel(slow.grpc_address)
        calls = [unary(leaving).future(request()) for _ in range(4)]
        time.sleep(0.2)
        leaving.close()
        assert all(call.cancelled() or call.exception() for call in calls)
        time.sleep(0.2)
        Held.free.set()
        assert first.result(timeout=10).raw_output_contents
    assert Held.runs == 1


def test_messages_over_the_limit_are_refused() -> None:
    session = OrtSession(tiny_model().SerializeToString(), threads=1)
    model = Model(session, name="tiny", sample={"x": np.ones((1, 4), np.float32)})
    limits = Limits(message_bytes=50_000)
    with (
        Server([model], port=0, grpc_port=0, grpc_limits=limits) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        assert unary(channel)(request(x=np.ones((3000, 4), np.float32))).raw_output_contents
        for coding in (None, grpc.Compression.Gzip):  # the second is small until it is decoded
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel)(request(x=np.ones((4000, 4), np.float32)), compression=coding)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "50000" in caught.value.details()


def test_a_stream_may_end_with_a_status(channel: Any) -> None:
    stream = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers = list(stream(iter([request(), request("no"), request()])))
    assert [bool(a.error_message) for a in answers] == [False, True, False]
    answers = stream(iter([request("no"), request()]), metadata=[("triton_grpc_error", "true")])
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert list(stream(iter([]))) == []


def test_a_stream_waits_for_a_client_that_reads_slowly(channel: Any) -> None:
    stream = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    rows = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    count = 0
    for answer in stream(iter([request(x=rows, id=str(i)) for i in range(50)])):
        assert answer.infer_response.id == str(count)
        count += 1
        time.sleep(0.002)
    assert count == 50


def test_many_calls_on_one_connection(server: Running) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            ask = unary(channel)

            async def one(i: int) -> None:
                rows = np.full((1 + i % 7, 4), i, np.float32)
                answer = await ask(request(x=rows, id=str(i)))
                assert answer.id == str(i)
                assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [1.5 * i] * 3 * len(rows)

            await asyncio.gather(*(one(i) for i in range(600)))

    asyncio.run(run())


def test_shutting_down_answers_what_was_asked(tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny.edge")
    rows = np.ones((50_000, 4), np.float32)
    with served(tmp_path / "tiny.edge") as running:
        with grpc.insecure_channel(running.grpc) as channel:
            ask = unary(channel)
            ask(request())
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                calls = [pool.submit(ask, request(x=rows)) for _ in range(24)]
                time.sleep(0.05)
                running.process.send_signal(signal.SIGTERM)
                outcomes = [call.exception() for call in calls]
        running.process.wait(15)
    for error in outcomes:  # answered, or clearly not taken: never half
        assert error is None or error.code() == grpc.StatusCode.UNAVAILABLE
    assert outcomes[0] is None


def test_the_port_can_be_chosen_and_turned_off(tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny.edge")
    with served(tmp_path / "tiny.edge", options=("--grpc-port", "off")) as running:
        assert running.grpc == ""
        modules = Path(f"/proc/{running.process.pid}/maps").read_text()
        assert "google/_upb" not in modules
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        session = OrtSession(tiny_model().SerializeToString())
        server = Server([Model(session, name="tiny")], port=0, grpc_port=port)
        with pytest.raises(EdgekitError, match=f"Port {port} of 127.0.0.1 is in use. Choose another with --grpc-port"):
            server.run()
