"""HTTP/2 under clients that ask for too much: floods, limits, slow and silent clients, and how the door closes."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from edgekit.runtime.ort import OrtSession
from edgekit.serve.h2 import frames as h2
from edgekit.serve.h2.frames import Code
from edgekit.serve.h2.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from tests.serve.h2_client import H2Client, headers, infer_message
from tests.serve.running import Running
from tests.tiny import tiny_model


def _flood(client: H2Client, data: bytes, times: int) -> int:
    """The code that the connection ends with."""
    try:
        for _ in range(times):
            client.send(data)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return client.until(h2.GOAWAY).code


def test_floods_end_the_connection_and_nothing_else(server: Running) -> None:
    with H2Client(server.grpc) as well:
        assert well.well(1)
        floods = [
            h2.frame(h2.PING, 0, 0, b"12345678"),
            h2.settings({h2.INITIAL_WINDOW_SIZE: 70_000}),
            h2.frame(h2.PRIORITY, 0, 1, b"\0\0\0\3\1"),
            h2.window_update(0, 1),
            h2.frame(0xFA, 0, 0, b""),
        ]
        for data in floods:
            with H2Client(server.grpc) as client:
                assert _flood(client, data * 200, 200) == Code.ENHANCE_YOUR_CALM
        with H2Client(server.grpc) as client:
            client.send(headers(client, 1))
            assert _flood(client, h2.frame(h2.DATA, 0, 1, b"") * 200, 200) == Code.ENHANCE_YOUR_CALM
        assert well.well(3)


def test_continuation_floods(server: Running) -> None:
    for piece in (b"", b"\x82" * 4000):
        with H2Client(server.grpc) as client:
            client.send(h2.frame(h2.HEADERS, 0, 1, b"\x82"))
            assert _flood(client, h2.frame(h2.CONTINUATION, 0, 1, piece), 500) == Code.ENHANCE_YOUR_CALM


def test_rapid_resets(server: Running) -> None:
    with H2Client(server.grpc) as client:
        client.call(1, infer_message())
        assert client.answer(1)[0]["grpc-status"] == "0"
        block = client.block()
        pairs = b"".join(h2.frame(h2.HEADERS, 4, i, block) + h2.rst_stream(i, Code.CANCEL) for i in range(3, 60_001, 2))
        assert _flood(client, pairs, 1) == Code.ENHANCE_YOUR_CALM


def test_header_lists_that_are_too_long(server: Running) -> None:
    with H2Client(server.grpc) as client:
        big = client.encoder.encode([("x-large", "v" * 3000)], huffman=False)
        again = client.encoder.encode([("x-large", "v" * 3000)])  # one byte that stands for 3,000
        assert len(again) == 1
        client.send(h2.frame(h2.HEADERS, 4, 1, client.block() + big + again * 1000))
        assert client.goaway().code == Code.ENHANCE_YOUR_CALM


def test_more_streams_than_allowed_are_refused() -> None:
    limits = Limits(streams=4)
    with _tiny(limits) as server, H2Client(server.grpc_address) as client:
        client.send(*(headers(client, i) for i in (1, 3, 5, 7, 9)))
        assert client.until(h2.RST_STREAM).stream == 9
        client.send(h2.frame(h2.DATA, 1, 1, infer_message()))
        assert client.answer(1)[0]["grpc-status"] == "0"
        client.send(headers(client, 11), h2.frame(h2.DATA, 1, 11, infer_message()))
        assert client.answer(11)[0]["grpc-status"] == "0"


def test_more_connections_than_allowed_are_turned_away() -> None:
    with _tiny(Limits(connections=2)) as server, H2Client(server.grpc_address) as first:
        assert first.well(1)
        with H2Client(server.grpc_address) as second, H2Client(server.grpc_address) as third:
            assert third.goaway().code == Code.REFUSED_STREAM
            assert second.well(1)
        for _ in range(100):
            with H2Client(server.grpc_address) as fourth:
                if (
                    next(f for f in fourth.frames() if f.kind in (h2.GOAWAY, h2.SETTINGS) and f.flags).kind
                    == h2.SETTINGS
                ):
                    break
            time.sleep(0.02)
        assert first.well(3)


def test_slow_clients_are_let_go() -> None:
    limits = Limits(head_s=0.4, body_s=0.4, idle_s=0.4, ping_s=0.3, pong_s=0.3, write_s=0.4)
    with _tiny(limits) as server:
        silent = H2Client(server.grpc_address, greet=False)
        no_ack = H2Client(server.grpc_address)
        half = H2Client(server.grpc_address)
        stalled = H2Client(server.grpc_address, settings={h2.INITIAL_WINDOW_SIZE: 0})
        for client in (half, stalled):
            client.send(h2.frame(h2.SETTINGS, h2.ACK, 0))
        half.send(headers(half, 1), h2.frame(h2.DATA, 0, 1, infer_message()[:10]))
        stalled.call(1, infer_message())
        assert silent.until(h2.GOAWAY).code == Code.SETTINGS_TIMEOUT
        assert no_ack.until(h2.GOAWAY).code == Code.SETTINGS_TIMEOUT
        fields = half.answer(1)[0]
        assert (fields["grpc-status"], fields["grpc-message"]) == ("4", "The message arrives too slowly.")
        assert stalled.until(h2.RST_STREAM, 1).code == Code.CANCEL
        for client in (silent, no_ack, half, stalled):
            client.socket.close()


def test_silent_clients_are_asked_and_kept_while_they_answer() -> None:
    limits = Limits(ping_s=0.3, pong_s=0.5, idle_s=60, head_s=60)
    with _tiny(limits) as server, H2Client(server.grpc_address) as alive, H2Client(server.grpc_address) as dead:
        begun = time.monotonic()
        asked = 0
        while asked < 4:
            frame = alive.until(h2.PING)
            asked += 1
            alive.send(h2.frame(h2.PING, h2.ACK, 0, frame.payload))
        assert alive.well(1)
        assert [f.kind for f in dead.frames()][-1] == h2.PING  # and then the connection ended
        assert time.monotonic() - begun < 20


def test_answers_that_nobody_reads_are_bounded() -> None:
    limits, rows = Limits(backlog_bytes=1 << 20), np.ones((50_000, 4), np.float32)
    with _tiny(limits) as server, H2Client(server.grpc_address, settings={h2.INITIAL_WINDOW_SIZE: 0}) as client:
        for number in range(1, 9, 2):
            client.call(number, infer_message(rows))
        statuses = {}
        for frame in client.frames():
            if frame.kind == h2.HEADERS:
                statuses[frame.stream] = dict(client.decoder.decode(frame.payload)).get("grpc-status")
            if len(statuses) == 4:
                break
        assert statuses == {1: None, 3: None, 5: "8", 7: "8"}


def test_messages_that_wait_take_no_more_than_their_bytes() -> None:
    tracemalloc.start()
    with _tiny(Limits()) as server, H2Client(server.grpc_address, settings={h2.INITIAL_WINDOW_SIZE: 0}) as client:
        assert client.until(h2.SETTINGS)
        before = tracemalloc.get_traced_memory()[0]
        empty = b"\0\0\0\0\0" * 3200
        for number in range(1, 81, 2):  # 40 streams of 3,200 empty messages each, whose answers cannot leave
            client.send(headers(client, number, method="ModelStreamInfer"), h2.frame(h2.DATA, 0, number, empty))
        client.send(h2.frame(h2.PING, 0, 0, b"the end!"))
        client.until(h2.PING)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert held < 3 * 40 * len(empty)
        client.send(h2.window_update(1, 1 << 22), h2.window_update(0, 1 << 28))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, infer_message()))
        fields, body = client.answer(1)
        assert fields["grpc-status"] == "0"
        assert body.count(b"Model '' is not served here") == 3200


def test_leaving_goes_in_two_steps() -> None:
    with _tiny(Limits()) as server, H2Client(server.grpc_address) as client:
        client.send(headers(client, 1))
        client.until(h2.SETTINGS)
        client.send(h2.frame(h2.SETTINGS, h2.ACK, 0), h2.frame(h2.PING, 0, 0, b"12345678"))
        client.until(h2.PING)
        server.stop()
        first = client.until(h2.GOAWAY)
        assert (int.from_bytes(first.payload[:4], "big"), first.code) == (h2.MAX_STREAM_ID, Code.NO_ERROR)
        ping = client.until(h2.PING)
        client.call(3, infer_message())  # was under way
        client.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
        assert client.until(h2.HEADERS, 3)
        second = client.until(h2.GOAWAY)
        assert (int.from_bytes(second.payload[:4], "big"), second.code) == (3, Code.NO_ERROR)
        client.call(5, infer_message())
        assert client.until(h2.RST_STREAM, 5).code == Code.REFUSED_STREAM
        client.send(h2.frame(h2.DATA, 1, 1, infer_message()))
        assert client.until(h2.HEADERS, 1)
        assert [f.kind for f in client.frames()] == [h2.DATA, h2.HEADERS]


def _tiny(limits: Limits) -> Server:
    session = OrtSession(tiny_model().SerializeToString(), threads=1)
    model = Model(session, name="tiny", sample={"x": np.ones((1, 4), np.float32)})
    return Server([model], port=0, grpc_port=0, grpc_limits=limits)
