"""A server from start to end, with models that are fakes: what users of the library can do too."""

from __future__ import annotations

import logging
import socket
import threading
import time

import numpy as np
import pytest

from edgekit.errors import BackendError, EdgekitError, InputError, UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.server import Server
from edgekit.tensors import TensorSpec
from tests.serve.running import Client, infer_body, tensor

INFER = "/v2/models/net/infer"
BODY = infer_body(tensor("x", [1], [3]))


def fake(latency_s: float = 0.0) -> FakeSession:
    spec = [TensorSpec("x", "float32", ("n",))]
    return FakeSession(
        spec, [TensorSpec("y", "float32", ("n",))], lambda feed: {"y": feed["x"] + 1}, latency_s=latency_s
    )


@pytest.mark.parametrize("latency_s", [0.0, 0.01])
def test_the_server_goes_on_when_the_runtime_fails(latency_s: float, caplog: pytest.LogCaptureFixture) -> None:
    session = fake(latency_s)
    model = Model(session, name="net", sample={"x": np.ones(1, np.float32)})
    with Server([model], port=0) as server, Client(server.url) as client:
        for failure, status, words in (
            (BackendError("out of memory on the device"), 500, "out of memory on the device"),
            (ZeroDivisionError("secret"), 500, "ZeroDivisionError"),
            (InputError("Input 'x' is wrong."), 400, "Input 'x' is wrong."),
        ):
            session.fail = failure
            with caplog.at_level(logging.CRITICAL, "edgekit"):
                answer = client.ask("POST", INFER, BODY)
            assert answer.status == status
            assert words in answer.json["error"]
            assert "secret" not in answer.json["error"]
            assert "Traceback" not in answer.json["error"]
        session.fail = None
        assert client.ask("POST", INFER, BODY).json["outputs"][0]["data"] == [4]
        stats = client.ask("GET", "/v2/models/net/stats").json["model_stats"][0]["inference_stats"]
        assert (stats["fail"]["count"], stats["success"]["count"]) == (3, 1)


def test_overload_is_answered_at_once() -> None:
    model = Model(fake(0.3), name="net", options=ModelOptions(queue_limit=1))
    with Server([model], port=0) as server:
        clients = [Client(server.url) for _ in range(6)]
        for client in clients:
            client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        answers = [client.read() for client in clients]
        assert {a.status for a in answers} == {200, 503}
        refused = next(a for a in answers if a.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert "has 1 requests waiting" in refused.json["error"]
        assert clients[0].ask("POST", INFER, BODY).status == 200
        for client in clients:
            client.socket.close()


def test_health_is_answered_while_a_model_runs() -> None:
    with (
        Server([Model(fake(1.0), name="net")], port=0) as server,
        Client(server.url) as busy,
        Client(server.url) as other,
    ):
        busy.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        assert other.ask("GET", "/v2/health/ready").status == 200
        assert busy.silent(0)
        assert busy.read().status == 200


def test_stopping_answers_what_is_in_flight_and_closes_idle_connections() -> None:
    session = fake(0.3)
    server = Server([Model(session, name="net")], port=0)
    with server, Client(server.url) as busy, Client(server.url) as idle:
        assert idle.ask("GET", "/v2").status == 200
        busy.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        while not session.calls:
            time.sleep(0.005)
        server.stop()
        assert idle.closed()
        answer = busy.read()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert busy.closed()
        server.stop()  # again
    with pytest.raises(BackendError, match="closed"):  # the models went with the server
        session.run({"x": np.ones(1, np.float32)})
    with pytest.raises(ConnectionError):
        Client(server.url)


def test_clients_on_many_threads_get_their_own_answers() -> None:
    model = Model(fake(), name="net", sample={"x": np.ones(1, np.float32)})
    wrong: list[int] = []

    def talk(number: int) -> None:
        with Client(server.url) as client:
            for i in range(50):
                value = number * 1000 + i
                answer = client.ask("POST", INFER, infer_body(tensor("x", [1], [value]), id=str(value)))
                if answer.json["outputs"][0]["data"] != [value + 1] or answer.json["id"] != str(value):
                    wrong.append(value)

    with Server([model], port=0) as server:
        threads = [threading.Thread(target=talk, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_addresses_that_cannot_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EdgekitError, match=f"Port {port} of 127.0.0.1 is in use") as caught:
            Server([], port=port).__enter__()
        assert caught.value.exit_code == 1
    with pytest.raises(EdgekitError, match="not this machine's"):
        Server([], host="192.0.2.1", port=0).__enter__()
    with pytest.raises(UsageError, match="is not an address"):
        Server([], host="no such host.invalid", port=0).__enter__()


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Server([], host="::1", port=0) as server, Client(server.url) as client:
        assert server.url.startswith("http://[::1]:")
        assert client.ask("GET", "/v2/health/ready").status == 200
