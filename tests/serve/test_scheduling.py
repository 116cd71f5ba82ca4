"""How requests wait, join and are given up, seen by clients of a running server."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgekit.runtime.fake import FakeSession
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.server import Server
from edgekit.tensors import Tensors, TensorSpec
from tests.serve.running import Client, infer_body, tensor

INFER = "/v2/models/net/infer"
SPECS = ([TensorSpec("x", "float32", ("n", 2))], [TensorSpec("y", "float32", ("n", 2))])


class Recorder(FakeSession):
    """y = 2 x, slowly; `runs` are the first values of each run's rows."""

    def __init__(self, latency_s: float) -> None:
        self.runs: list[list[float]] = []

        def run(feed: Tensors) -> Tensors:
            self.runs.append(feed["x"][:, 0].tolist())
            return {"y": feed["x"] * 2}

        super().__init__(*SPECS, run, latency_s=latency_s)


def model(session: FakeSession, **options: object) -> Model:
    return Model(session, name="net", options=ModelOptions(**options))  # type: ignore[arg-type]


def request(value: float, **parameters: object) -> bytes:
    body = infer_body(tensor("x", [1, 2], [value, 0]), parameters=parameters)
    return f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def first(client: Client) -> float:
    answer = client.read()
    assert answer.status == 200, answer.body
    return float(answer.json["outputs"][0]["data"][0])


Send = Callable[..., list[Client]]


@pytest.fixture
def send() -> Iterator[Send]:
    """`send(url, request, ...)`: each request over a connection of its own, one after the other."""
    with contextlib.ExitStack() as opened:

        def all_of(url: str, *requests: bytes) -> list[Client]:
            clients = []
            for data in requests:
                clients.append(opened.enter_context(Client(url)))
                clients[-1].send(data)
                time.sleep(0.03)
            return clients

        yield all_of


def test_requests_that_wait_are_joined_and_each_gets_its_own_rows(send: Send) -> None:
    session = Recorder(0.4)
    with Server([model(session, max_batch=4)], port=0) as server:
        clients = send(server.url, *(request(i) for i in range(4)))
        assert [first(c) for c in clients] == [0, 2, 4, 6]
        assert session.runs == [[0], [1, 2, 3]]
        with Client(server.url) as client:
            (stats,) = client.ask("GET", "/v2/models/net/stats").json["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (4, 2)
        assert [b["batch_size"] for b in stats["batch_stats"]] == [1, 3]


def test_a_delay_gathers_requests_that_come_one_after_the_other(send: Send) -> None:
    session = Recorder(0.0)
    with Server([model(session, max_batch=3, queue_delay_ms=5000.0)], port=0) as server:
        start = time.monotonic()
        clients = send(server.url, *(request(i) for i in range(3)))
        assert [first(c) for c in clients] == [0, 2, 4]
        assert time.monotonic() - start < 3  # the batch was whole before the delay was over
        assert session.runs == [[0, 1, 2]]


def test_priorities_overtake(send: Send) -> None:
    session = Recorder(0.3)
    with Server([model(session)], port=0) as server:
        clients = send(server.url, request(0), request(3, priority=3), request(2), request(1, priority=1))
        assert [first(c) for c in clients] == [0, 6, 4, 2]
        assert session.runs == [[0], [1], [2], [3]]


def test_a_timeout_is_answered_when_it_is_over_though_the_model_is_busy(send: Send) -> None:
    session = Recorder(1.0)
    with Server([model(session)], port=0) as server:
        busy, hasty = send(server.url, request(0), request(1, timeout=100_000))
        start = time.monotonic()
        answer = hasty.read()
        assert time.monotonic() - start < 0.8
        assert answer.status == 504
        assert "longer than its timeout, and was not run" in answer.json["error"]
        assert first(busy) == 0
        assert session.runs == [[0]]


def test_the_model_s_own_timeout_holds_for_requests_that_name_none(send: Send) -> None:
    with Server([model(Recorder(0.3), timeout_ms=50.0)], port=0) as server:
        clients = send(server.url, request(0), request(1), request(2, timeout=10_000_000))
        assert [c.read().status for c in clients] == [200, 504, 200]


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_what_a_client_asked_that_is_gone_is_not_run(send: Send, reset: bool) -> None:
    session = Recorder(0.6)
    with Server([model(session)], port=0) as server:
        busy, gone, waits = send(server.url, request(0), request(1), request(2))
        if reset:
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.socket.close()
        assert [first(busy), first(waits)] == [0, 4]
        assert session.runs == [[0], [2]]
        with Client(server.url) as client:
            assert b'edgekit_cancelled_total{model="net",version="1"} 1\n' in client.ask("GET", "/metrics").body


def test_a_client_alone_does_not_wait_for_company() -> None:
    sample = {"x": np.ones((4, 2), np.float32)}
    quick = Model(Recorder(0.0), name="net", sample=sample, options=ModelOptions(max_batch=8))
    with Server([quick], port=0) as server, Client(server.url) as client:
        for i in range(100):
            client.send(request(i))
            assert first(client) == 2 * i
    assert quick.stats.batches[1].runs == 100
    assert quick.stats.queue.ns / 100 < 1e6


def test_many_clients_of_a_quick_model_are_joined_without_a_thread() -> None:
    session = Recorder(0.0)
    sample = {"x": np.ones((4, 2), np.float32)}
    quick = Model(session, name="net", sample=sample, options=ModelOptions(max_batch=8))
    session.runs.clear()
    wrong: list[float] = []
    with Server([quick], port=0) as server:

        def ask(own: int) -> None:
            with Client(server.url) as client:
                for i in range(150):
                    client.send(request(own * 1000 + i))
                    if first(client) != 2 * (own * 1000 + i):
                        wrong.append(own)

        threads = [threading.Thread(target=ask, args=(own,)) for own in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong
    assert sum(map(len, session.runs)) == 1200
    assert sorted(v for run in session.runs for v in run) == [1000.0 * o + i for o in range(8) for i in range(150)]
    assert max(map(len, session.runs)) <= 8


def test_parameters_of_another_type_are_refused() -> None:
    with Server([model(Recorder(0.0))], port=0) as server, Client(server.url) as client:
        for parameters in ({"priority": "high"}, {"timeout": -1}, {"timeout": 1.5}, {"priority": True}):
            client.send(request(1, **parameters))
            answer = client.read()
            assert answer.status == 400
            assert "expected a whole number" in answer.json["error"]
        client.send(request(1, priority=99))
        assert first(client) == 2


STATE = (
    [TensorSpec("x", "float32", ("n", 1)), TensorSpec("sum", "float32", ("n", 1))],
    [TensorSpec("total", "float32", ("n", 1)), TensorSpec("same", "float32", ("n", 1))],
)


def adder(latency_s: float = 0.0) -> FakeSession:
    def run(feed: Tensors) -> Tensors:
        total = feed["sum"] + feed["x"]
        return {"total": total, "same": total}

    return FakeSession(*STATE, run, latency_s=latency_s)


def step(value: float, **parameters: object) -> bytes:
    body = infer_body(tensor("x", [1, 1], [value]), parameters=parameters)
    return f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_requests_of_one_sequence_run_in_the_order_they_came(send: Send) -> None:
    """Also when they come over several connections before the first is answered."""
    model = Model(adder(0.05), name="net", states={"sum": "total"})
    with Server([model], port=0) as server:
        parts = [step(2**i, sequence_id="a", sequence_start=i == 0, sequence_end=i == 4) for i in range(5)]
        clients = send(server.url, *parts)
        assert [first(c) for c in clients] == [1, 3, 7, 15, 31]
        assert len(model.sequences) == 0


def test_sequences_are_told_apart_and_joined(send: Send) -> None:
    model = Model(adder(0.3), name="net", states={"sum": "total"}, options=ModelOptions(max_batch=8))
    with Server([model], port=0) as server:
        for round_ in range(3):
            parts = [step(own, sequence_id=own, sequence_start=round_ == 0) for own in range(1, 5)]
            clients = send(server.url, *parts)
            answers = [c.read().json["outputs"] for c in clients]
            assert [a[0]["data"] for a in answers] == [[own * (round_ + 1)] for own in range(1, 5)]
            assert [[o["name"] for o in a] for a in answers] == [["same"]] * 4  # a state stays here
    assert model.stats.runs < model.stats.success.count == 12


def test_a_state_is_sent_when_it_is_asked_for_and_taken_when_it_is_given() -> None:
    model = Model(adder(), name="net", states={"sum": "total"})
    with Server([model], port=0) as server, Client(server.url) as client:
        body = infer_body(tensor("x", [1, 1], [1]), tensor("sum", [1, 1], [10]), outputs=[{"name": "total"}])
        assert client.ask("POST", INFER, body).json["outputs"][0]["data"] == [11]
        body = json.loads(body)
        body["parameters"] = {"sequence_id": 3, "sequence_start": True}
        assert client.ask("POST", INFER, json.dumps(body).encode()).json["outputs"][0]["data"] == [11]
        client.send(step(5, sequence_id=3))
        assert first(client) == 16


def test_a_sequence_goes_on_after_a_fault() -> None:
    model = Model(adder(), name="net", states={"sum": "total"})
    with Server([model], port=0) as server, triton.InferenceServerClient(server.url.removeprefix("http://")) as client:

        def ask(value: float, shape: list[int], **parameters: object) -> float:
            item = triton.InferInput("x", shape, "FP32")
            item.set_data_from_numpy(np.full(shape, value, np.float32))
            return float(client.infer("net", [item], **parameters).as_numpy("same")[0, 0])

        with pytest.raises(InferenceServerException, match="is not open"):
            ask(1, [1, 1], sequence_id=9)
        assert ask(1, [1, 1], sequence_id=9, sequence_start=True) == 1
        with pytest.raises(InferenceServerException, match="got"):
            ask(1, [1, 2], sequence_id=9)
        with pytest.raises(InferenceServerException, match="must be equal"):
            ask(1, [2, 1], sequence_id=9)
        assert ask(1, [1, 1], sequence_id=9) == 2
        assert ask(1, [1, 1], sequence_id=9, sequence_end=True) == 3
        with pytest.raises(InferenceServerException, match="is not open"):
            ask(1, [1, 1], sequence_id=9)


def test_answers_come_from_the_cache_and_are_the_same() -> None:
    session = Recorder(0.0)
    cached = Model(session, name="net", options=ModelOptions(cache_mib=1.0))
    with Server([cached], port=0) as server, Client(server.url) as client:
        for value in (1, 2, 1, 1, 2):
            client.send(request(value))
            assert first(client) == 2 * value
    assert session.runs == [[1], [2]]
    assert (cached.stats.hit.count, cached.stats.miss.count) == (3, 2)
