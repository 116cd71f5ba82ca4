"""Damaged requests: always an answer or a closed connection, never a fault of the server's own."""

from __future__ import annotations

import gzip
import re
import socket
import struct

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.running import Client, Running, infer_body, tensor


def request(path: str, body: bytes, *lines: str, method: str = "POST") -> bytes:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, f"Content-Length: {len(body)}"])
    return f"{head}\r\n\r\n".encode() + body


def _seeds() -> list[bytes]:
    tiny = "/v2/models/tiny/infer"
    plain = infer_body(
        tensor("x", [1, 4], [[1, 2.5, -3e2, 4]]),
        id="7",
        outputs=[{"name": "scores", "parameters": {"classification": 2, "binary_data": True}}],
        parameters={"binary_data_output": True},
    )
    words = infer_body(
        {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
        outputs=[{"name": "same", "parameters": {"binary_data": False}}],
    )
    raw = struct.pack("<I1sI2s", 1, b"a", 2, "é".encode())
    mixed = infer_body(
        tensor("in_int8", [1, 2], [1, -1], "INT8"), tensor("in_bool", [1, 2], [True, False], "BOOL"), id="a"
    )
    return [
        request(tiny, plain),
        request("/v2/models/words/infer", words + raw, f"Inference-Header-Content-Length: {len(words)}"),
        request("/v2/models/identity/versions/1/infer", mixed, "Accept-Encoding: gzip"),
        request(tiny, np.ones(8, np.float32).tobytes(), "Inference-Header-Content-Length: 0"),
        request(tiny, gzip.compress(plain), "Content-Encoding: gzip", "Expect: 100-continue"),
        b"POST " + tiny.encode() + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(plain), plain),
        request("/v2/repository/index", b'{"ready":true}'),
        request("/v2/models/tiny/versions/1/config", b"", method="GET"),
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /v2 HTTP/1.0\r\n\r\n",
    ]


SEEDS = _seeds()
TOKENS = [
    *(b"\r\n", b"\r\n\r\n", b"\0", b"\xff\xfe", b":", b" ", b"0", b"-1", b"99999999999", b"1e999", b"NaN", b"null"),
    *(b"[", b"]", b"{", b"}", b'"', b",", b"[[[[", b"true", b"\\ud800", b"%00", b"%ff", b"/../", b"chunked", b"gzip"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: deflate\r\n", b"Expect: x\r\n"),
    *(b"Inference-Header-Content-Length: 3\r\n", b"BYTES", b"FP16", b"BF16", b'"binary_data_size":8', b'"shape":[0]'),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with a few pieces replaced, removed, repeated or put in."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6), st.just(data[at:end] * 2)))
        data = data[:at] + piece + data[end:]
    return data


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_damaged_requests(server: Running, data: bytes) -> None:
    with Client(server.url, timeout_s=10) as client:
        received = b""
        try:
            client.send(data)
            client.socket.shutdown(socket.SHUT_WR)
            while piece := client.socket.recv(1 << 16):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert not re.search(rb"HTTP/1\.1 5\d\d", received), received
    assert b"Traceback" not in received
    assert received == b"" or received.startswith(b"HTTP/1.1 "), received


def test_the_server_is_well_after_all_that(server: Running, client: Client) -> None:
    answer = client.ask("POST", "/v2/models/tiny/infer", infer_body(tensor("x", [1, 4], [1, 2, 3, 4])))
    assert answer.json["outputs"][0]["data"] == [3, 4, 5]
    assert server.process.poll() is None
