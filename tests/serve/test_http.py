"""The HTTP door, byte by byte: what it takes, what it refuses, and that one client never harms another."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from edgekit.runtime.fake import FakeSession
from edgekit.serve.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.tensors import Tensors, TensorSpec
from tests.serve.running import Client, infer_body, tensor

SPECS = ([TensorSpec("x", "float32", ("n",))], [TensorSpec("y", "float32", ("n",))])
INFER = "/v2/models/double/infer"
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"


def double(feed: Tensors) -> Tensors:
    return {"y": feed["x"] * 2}


@contextlib.contextmanager
def serving(limits: Limits | None = None, *, latency_s: float = 0.0) -> Iterator[Server]:
    """A model `double` that runs where requests are parsed, and `slow`, on its own thread."""
    one = {"x": np.ones(1, np.float32)}
    models = [
        Model(FakeSession(*SPECS, double), name="double", sample=one),
        Model(FakeSession(*SPECS, double, latency_s=latency_s or 0.05), name="slow"),
    ]
    with Server(models, port=0, limits=limits) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as connection:
        yield connection


def body(*values: float, **fields: object) -> bytes:
    return infer_body(tensor("x", [len(values)], list(values)), **fields)


def post(path: str, content: bytes, *lines: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(content)}", *lines])
    return f"{head}\r\n\r\n".encode() + content


def test_a_connection_is_kept_and_used_again(client: Client) -> None:
    for i in range(3):
        answer = client.ask("POST", INFER, body(i))
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [2.0 * i])
        assert "connection" not in answer.headers


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """A slow model first: the quick answers behind it wait for it."""
    paths = ["/v2/models/slow/infer", INFER, INFER, "/v2/models/slow/infer", INFER]
    client.send(b"".join(post(path, body(i, id=str(i))) for i, path in enumerate(paths)))
    answers = [client.read() for _ in paths]
    assert [a.json["id"] for a in answers] == ["0", "1", "2", "3", "4"]
    assert [a.json["model_name"] for a in answers] == ["slow", "double", "double", "slow", "double"]


def test_a_thousand_pipelined_requests(client: Client) -> None:
    client.send(b"".join(post(INFER, body(i)) for i in range(1000)))
    assert [client.read().json["outputs"][0]["data"][0] for _ in range(1000)] == [2.0 * i for i in range(1000)]


def test_a_request_may_come_a_byte_at_a_time(client: Client) -> None:
    for byte in post(INFER, body(1, 2)):
        client.send(bytes([byte]))
    assert client.read().json["outputs"][0]["data"] == [2, 4]


@pytest.mark.parametrize("trailer", [b"", b"Inference-Header-Content-Length: 0\r\n"])
def test_chunked_bodies(client: Client, trailer: bytes) -> None:
    content = body(1, 2, 3)
    chunks = [content[i : i + 7] for i in range(0, len(content), 7)]
    client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for chunk in chunks:
        client.send(b"%x;ext=1\r\n%b\r\n" % (len(chunk), chunk))
    client.send(b"0\r\n" + trailer + b"\r\n" + READY)
    assert client.read().json["outputs"][0]["data"] == [2, 4, 6]
    assert client.read().status == 200


def test_expect_100_continue(client: Client) -> None:
    content = body(4)
    head, _, _ = post(INFER, content, "Expect: 100-continue").partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.read().status == 100
    client.send(content)
    assert client.read().json["outputs"][0]["data"] == [8]


def test_continue_waits_for_the_answers_before_it(client: Client) -> None:
    content = body(4)
    head, _, _ = post(INFER, content, "Expect: 100-continue").partition(b"\r\n\r\n")
    client.send(post("/v2/models/slow/infer", body(1)) + head + b"\r\n\r\n")
    assert client.read().json["model_name"] == "slow"
    assert client.read().status == 100
    client.send(content)
    assert client.read().json["outputs"][0]["data"] == [8]


def test_http_1_0(server: Server) -> None:
    with Client(server.url) as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert client.read().headers["connection"] == "close"
        assert client.closed()
    with Client(server.url) as client:
        for _ in range(2):
            client.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert client.read().headers["connection"] == "keep-alive"


def test_connection_close_is_honoured(client: Client) -> None:
    assert client.ask("GET", "/v2", headers={"Connection": "close"}).headers["connection"] == "close"
    assert client.closed()


def test_what_follows_a_last_request_is_not_answered(client: Client) -> None:
    client.send(b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + READY)
    assert client.read().status == 200
    assert client.closed()


def test_head_answers_without_a_body(client: Client) -> None:
    whole = client.ask("GET", "/v2/models/double")
    head = client.ask("HEAD", "/v2/models/double")
    assert head.status == 200
    assert int(head.headers["content-length"]) == len(whole.body) > 0
    assert client.ask("GET", "/v2/health/live").status == 200  # nothing of a body is left on the line


def test_a_client_that_half_closes_gets_its_answer(client: Client) -> None:
    client.send(post("/v2/models/slow/infer", body(3)))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.read().json["outputs"][0]["data"] == [6]
    assert client.closed()


def test_an_offer_of_another_protocol_is_passed_over(client: Client) -> None:
    upgrade = b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    client.send(upgrade * 2000 + READY)
    assert [client.read().status for _ in range(2001)] == [200] * 2001


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/double/versions/1", 200),
        ("GET", "/v2/models/double/versions//config", 404),
        ("GET", "/v2/models/double/other", 404),
        ("GET", "/v2/models/d%6Fuble?x=1#y", 200),
        ("GET", "/v2/models/double%2Fready", 404),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/v2/models/double/ready", 200),
        ("GET", "/v2/models/double/versions/2/ready", 400),
        ("GET", "http://elsewhere/v2/models/double", 200),
        ("OPTIONS", "*", 404),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/double", 405),
        ("GET", INFER, 405),
        ("GET", "/v2/repository/index", 405),
    ],
)
def test_paths_and_methods(client: Client, method: str, path: str, status: int) -> None:
    answer = client.ask(method, path)
    assert answer.status == status
    if status != 200:
        assert list(answer.json) == ["error"]
    if status == 405:
        assert answer.headers["allow"] in ("GET, HEAD", "POST")


def test_repository_index_takes_a_filter_and_refuses_nonsense(client: Client) -> None:
    assert len(client.ask("POST", "/v2/repository/index", b'{"ready":true}').json) == 2
    assert client.ask("POST", "/v2/repository/index", b"{").status == 400
    assert client.ask("POST", "/v2/repository/index", b'{"ready":3}').status == 400


SMUGGLING = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n",
    "two equal lengths": b"Content-Length: 0\r\nContent-Length: 0\r\n",
    "a list of lengths": b"Content-Length: 0, 0\r\n",
    "length and chunked": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "signed length": b"Content-Length: +4\r\n",
    "negative length": b"Content-Length: -4\r\n",
    "hexadecimal length": b"Content-Length: 0x4\r\n",
    "length beyond 64 bits": b"Content-Length: 99999999999999999999\r\n",
    "other coding": b"Transfer-Encoding: xchunked\r\n",
    "coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunked is not last": b"Transfer-Encoding: chunked, identity\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "folded header": b"X-A: b\r\n c\r\n",
    "folded coding": b"Transfer-Encoding:\r\n chunked\r\n",
    "space before colon": b"Content-Length : 4\r\n",
    "no name": b": 4\r\n",
    "NUL in a value": b"X-A: a\0b\r\n",
    "bare CR": b"X-A: a\rb\r\n",
    "two hosts": b"Host: b\r\n",
    "two header lengths": b"Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING)
def test_requests_that_two_servers_may_read_differently_are_refused(client: Client, lines: bytes) -> None:
    client.send(b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n0\r\n\r\n" + READY)
    answer = client.read()
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert list(answer.json) == ["error"]
    assert client.closed()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2\r\n\r\n",
        b"GET /v2 HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",  # no Host
        b"GET /v2 HTTP/1.1\nHost: a\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"POST /v2/repository/index HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_1_is_refused(client: Client, data: bytes) -> None:
    client.send(data)
    assert client.read().status == 400
    assert client.closed()


def test_an_unknown_expectation_is_refused(client: Client) -> None:
    client.send(b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nContent-Length: 0\r\n\r\n")
    assert client.read().status == 417


SMALL = Limits(
    body_bytes=20_000,
    target_bytes=200,
    head_bytes=1000,
    headers=20,
    connections=3,
    head_s=0.3,
    body_s=0.3,
    idle_s=0.6,
    linger_s=0.5,
    buffered_bytes=25_000,
)


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    with serving(SMALL) as running:
        yield running


def test_a_long_body_is_refused_before_it_is_sent(strict: Server) -> None:
    with Client(strict.url) as client:
        client.send(
            f"POST {INFER} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 20001\r\n\r\n".encode()
        )
        answer = client.read()
        assert (answer.status, "20001" in answer.json["error"]) == (413, True)
        assert client.closed()


def test_a_client_that_sends_a_long_body_anyway_still_reads_why_not(strict: Server) -> None:
    with Client(strict.url) as client:
        client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n".encode())
        client.send(b" " * 4_000_000)
        assert client.read().status == 413


def test_a_long_chunked_body_is_refused(strict: Server) -> None:
    with Client(strict.url) as client:
        client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(21):
            client.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert client.read().status == 413


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 1000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 25 + b"\r\n", 431),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 25 + b"\r\n", 431),
    ],
)
def test_long_heads_are_refused(strict: Server, head: bytes, status: int) -> None:
    with Client(strict.url) as client:
        client.send(head)
        assert client.read().status == status
        assert client.closed()


def test_a_header_without_end_is_refused(strict: Server) -> None:
    with Client(strict.url) as client:
        client.send(b"GET /v2 HTTP/1.1\r\nHost: a\r\nA: ")
        for _ in range(30):
            time.sleep(0.005)  # so that it comes in many pieces
            client.send(b"a" * 100)
        assert client.read().status == 431


def test_slow_clients_are_let_go(strict: Server) -> None:
    with Client(strict.url) as head, Client(strict.url) as slow, Client(strict.url) as idle:
        head.send(b"GET /v2 HTTP/1.1\r\nHos")
        slow.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n[".encode())
        assert head.read().status == 408
        assert slow.read().status == 408
        assert idle.closed()


def test_too_many_connections_are_answered_503(strict: Server) -> None:
    with contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(Client(strict.url)) for _ in range(3)]
        assert all(c.ask("GET", "/v2/health/live").status == 200 for c in open_)
        extra = stack.enter_context(Client(strict.url))
        answer = extra.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # the server sees the others leave
        with Client(strict.url) as again, contextlib.suppress(ConnectionError):
            if again.ask("GET", "/v2/health/live").status == 200:
                return
    pytest.fail("the server stayed full")


def test_unfinished_bodies_are_bounded_together(strict: Server) -> None:
    with Client(strict.url) as first, Client(strict.url) as second:
        for client in (first, second):
            client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 19999\r\n\r\n".encode())
        first.send(b" " * 15_000)
        time.sleep(0.1)
        second.send(b" " * 15_000)
        assert second.read().status == 503


def test_a_client_that_leaves_in_the_middle_harms_nobody(server: Server, client: Client) -> None:
    for cut in (1, 40, -1):
        with Client(server.url) as other:
            other.send(post("/v2/models/slow/infer", body(1))[:cut])
    with Client(server.url) as other:
        other.send(post("/v2/models/slow/infer", body(1)))
    assert client.ask("POST", "/v2/models/slow/infer", body(5)).json["outputs"][0]["data"] == [10]


def test_a_client_that_does_not_read_is_not_read_from(server: Server, client: Client) -> None:
    """Answers are not piled up for it, and others are served meanwhile."""
    many = post(INFER, body(*range(3000))) * 3000
    with Client(server.url, timeout_s=0.5) as deaf:
        with pytest.raises(TimeoutError):
            deaf.send(many)
        assert client.ask("GET", "/v2/health/live").status == 200


def test_errors_quote_little_of_what_they_were_sent(client: Client) -> None:
    answer = client.ask("POST", INFER, infer_body(tensor("x" * 10_000, [1], [1])))
    assert answer.status == 400
    assert len(answer.body) < 1000
    assert json.loads(answer.body)["error"].endswith("…")
