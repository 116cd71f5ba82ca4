"""One connection that asks for a thousand things at once does not keep the others waiting for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.fake import FakeSession
from edgekit.serve.h2 import frames as h2
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.serve.warmup import Cost
from edgekit.tensors import TensorSpec
from tests.serve.running import Client, infer_body, tensor

MANY, RUN_S = 800, 1e-3
BODY = infer_body(tensor("x", [1], [3]))
REQUEST = f"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY


def slow_inline() -> Model:
    """A model that runs where requests are parsed and takes a millisecond there."""
    spec = [TensorSpec("x", "float32", ("n",))]

    def run(feed: Any) -> Any:
        end = time.perf_counter() + RUN_S
        while time.perf_counter() < end:
            pass
        return {"y": feed["x"] + 1}

    session = FakeSession(spec, [TensorSpec("y", "float32", ("n",))], run)
    return Model(session, name="net", cost=Cost(latency_s=1e-6, feed_bytes=1 << 20))


def longest_wait(server: Server, until: Callable[[], bool]) -> float:
    """The longest that another client waits for an answer meanwhile."""
    longest = 0.0
    with Client(server.url) as other:
        while not until():
            began = time.monotonic()
            assert other.ask("GET", "/v2/health/live").status == 200
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.002)
    return longest


def test_pipelined_requests_take_turns_with_other_clients() -> None:
    done = threading.Event()
    answers: list[Any] = []

    def ask() -> None:
        with Client(server.url) as client:
            client.send(REQUEST * MANY)
            answers.extend(client.read() for _ in range(MANY))
        done.set()

    with Server([slow_inline()], port=0) as server:
        thread = threading.Thread(target=ask)
        began = time.monotonic()
        thread.start()
        longest = longest_wait(server, done.is_set)
        thread.join()
        whole_s = time.monotonic() - began
    assert [a.json["outputs"][0]["data"] for a in answers] == [[4]] * MANY
    assert longest < whole_s / 2


def test_calls_of_one_connection_take_turns_with_other_clients() -> None:
    h2_client = pytest.importorskip("tests.serve.h2_client", reason="needs hpack and tritonclient")
    calls = 250  # as many as may be open
    x = np.array([3], np.float32)
    body = h2_client.infer_message(x, "net")
    done = threading.Event()
    ended: list[int] = []

    def ask() -> None:
        with h2_client.H2Client(server.grpc_address) as client:
            block = client.block()
            frames = []
            for number in range(1, 2 * calls, 2):
                frames.append(h2.frame(h2.HEADERS, h2.END_HEADERS, number, block if number == 1 else client.block()))
                frames.append(h2.frame(h2.DATA, h2.END_STREAM, number, body))
            client.send(b"".join(frames))
            for frame in client.frames():
                if frame.flags & h2.END_STREAM and frame.kind == h2.HEADERS:
                    ended.append(frame.stream)
                if len(ended) == calls:
                    break
            client.call(2 * calls + 1, body)  # the connection is as good as before
            assert client.answer(2 * calls + 1)[0]["grpc-status"] == "0"
        done.set()

    with Server([slow_inline()], port=0, grpc_port=0) as server:
        thread = threading.Thread(target=ask)
        began = time.monotonic()
        thread.start()
        longest = longest_wait(server, done.is_set)
        thread.join()
        whole_s = time.monotonic() - began
    assert sorted(ended) == list(range(1, 2 * calls, 2))
    assert longest < whole_s / 2
