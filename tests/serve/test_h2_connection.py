"""HTTP/2 as RFC 9113 has it: what is allowed works, what is not ends the stream or the connection."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from edgekit.serve.h2 import frames as h2
from edgekit.serve.h2.frames import Code
from tests.serve.h2_client import H2Client, headers, infer_message
from tests.serve.running import Running

ROWS = np.arange(400_000, dtype=np.float32).reshape(-1, 4)


# what is allowed


def test_frames_may_come_in_any_pieces(server: Running) -> None:
    with H2Client(server.grpc, greet=False) as client:
        data = h2.PREFACE + h2.settings({}) + headers(client, 1) + h2.frame(h2.DATA, 1, 1, infer_message())
        for i in range(len(data)):
            client.send(data[i : i + 1])
        assert client.answer(1)[0]["grpc-status"] == "0"
        assert client.well(3)


def test_padding_priority_and_continuation(server: Running) -> None:
    with H2Client(server.grpc) as client:
        block, body = client.block(), infer_message()
        padded = bytes((7,)) + b"\0\0\0\0\x10" + block[:4] + b"\0" * 7
        client.send(
            h2.frame(h2.HEADERS, h2.PADDED | h2.HAS_PRIORITY, 1, padded),
            h2.frame(h2.CONTINUATION, 0, 1, b""),
            h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[4:]),
            h2.frame(h2.PRIORITY, 0, 99, b"\0\0\0\1\1"),
            h2.frame(h2.DATA, h2.PADDED, 1, bytes((3,)) + body[:9] + b"\0\0\0"),
            h2.frame(0xBE, 0xFF, 1, b"unknown frames are passed over"),
            h2.frame(h2.DATA, h2.PADDED, 1, b"\0" + body[9:]),
            h2.frame(h2.DATA, h2.END_STREAM, 1),
        )
        assert client.answer(1)[0]["grpc-status"] == "0"
        assert client.well(3)


def test_trailers_may_end_a_request(server: Running) -> None:
    with H2Client(server.grpc) as client:
        end = client.encoder.encode([("x-checksum", "1")])
        client.send(
            headers(client, 1),
            h2.frame(h2.DATA, 0, 1, infer_message()),
            h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, end),
        )
        assert client.answer(1)[0]["grpc-status"] == "0"


def test_ping_and_settings_are_acknowledged(server: Running) -> None:
    with H2Client(server.grpc) as client:
        client.send(h2.frame(h2.PING, 0, 0, b"12345678"))
        assert client.until(h2.PING).payload == b"12345678"
        client.send(h2.settings({h2.MAX_FRAME_SIZE: 1 << 20, 0x7777: 5}))
        assert client.until(h2.SETTINGS).flags == h2.ACK
        assert client.well(1)


def test_the_clients_table_may_shrink(server: Running) -> None:
    with H2Client(server.grpc, settings={h2.HEADER_TABLE_SIZE: 0}) as client:
        client.decoder.max_allowed_table_size = 0
        client.decoder.header_table_size = 4096
        client.call(1, infer_message())  # fails to decode if the server does not say that it shrinks its own
        assert client.answer(1)[0]["grpc-status"] == "0"
        assert client.well(3)


def test_answers_wait_for_the_clients_windows(server: Running) -> None:
    with H2Client(server.grpc, settings={h2.INITIAL_WINDOW_SIZE: 0}) as client:
        client.call(1, infer_message(ROWS))
        assert client.until(h2.HEADERS, 1).flags == h2.END_HEADERS
        client.send(h2.frame(h2.PING, 0, 0, b"are you?"))
        got, sent = bytearray(), 0
        while True:
            frame = next(client.frames())
            if frame.kind == h2.PING:
                client.send(h2.window_update(1, 1))
                sent = 1
            elif frame.kind == h2.DATA:
                assert sent  # not before a window was given
                got += frame.payload
                assert len(got) <= sent
                if len(got) == sent:
                    step = 1 if sent < 5 else 60_000
                    client.send(h2.window_update(1, step), h2.window_update(0, step))
                    sent += step
            elif frame.kind == h2.HEADERS:
                assert frame.flags & h2.END_STREAM
                break
        values = np.frombuffer(pb.ModelInferResponse.FromString(bytes(got[5:])).raw_output_contents[0], np.float32)
        assert np.array_equal(values.reshape(-1, 3), ROWS[:, :3] + ROWS[:, 3:] / 2)


def test_a_window_may_shrink_below_zero(server: Running) -> None:
    with H2Client(server.grpc) as client:
        client.call(1, infer_message(ROWS))
        got = client.until(h2.DATA, 1).payload
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 10}), h2.frame(h2.PING, 0, 0, b"12345678"))
        for frame in client.frames():
            if frame.kind == h2.PING:
                break
            got += frame.payload if frame.kind == h2.DATA else b""
        client.send(h2.window_update(0, 1 << 30), h2.window_update(1, 65_525 + 100))  # 110 less than was sent before
        while len(got) < 65_635:
            got += client.until(h2.DATA, 1).payload
        client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 28}))
        while (frame := next(client.frames())).kind != h2.HEADERS:
            got += frame.payload if frame.kind == h2.DATA else b""
        assert len(pb.ModelInferResponse.FromString(got[5:]).raw_output_contents[0]) == len(ROWS) * 12


def test_the_server_opens_its_windows_as_it_reads(server: Running) -> None:
    with H2Client(server.grpc) as client:
        body = infer_message(np.zeros((1, 1 << 20), np.float32), "wide")
        client.send(headers(client, 1))
        window, total, sent = {0: 65_535, 1: 65_535}, len(body), 0
        frames = client.frames()
        for frame in frames:
            if frame.kind == h2.SETTINGS and not frame.flags:
                values = dict(h2.read_settings(frame.payload))
                window[1] = values[h2.INITIAL_WINDOW_SIZE]
            elif frame.kind == h2.WINDOW_UPDATE:
                window[frame.stream] += int.from_bytes(frame.payload, "big")
            elif frame.kind == h2.HEADERS:
                break
            while sent < total and min(window.values()) > 0:
                size = min(16_384, total - sent, *window.values())
                client.send(h2.frame(h2.DATA, int(sent + size == total), 1, body[sent : sent + size]))
                sent += size
                window = {k: v - size for k, v in window.items()}
        assert sent == total


def test_an_early_error_lets_the_client_stop(server: Running) -> None:
    with H2Client(server.grpc) as client:
        client.send(headers(client, 1, grpc_encoding="snappy"), h2.frame(h2.DATA, 0, 1, b"x" * 5000))
        fields = client.decoder.decode(client.until(h2.HEADERS, 1).payload)
        assert ("grpc-status", "12") in fields
        assert ("grpc-accept-encoding", "identity,deflate,gzip") in fields
        assert client.until(h2.RST_STREAM, 1).code == Code.NO_ERROR
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, b"x" * 5000))  # was under way
        assert client.well(3)


@pytest.mark.parametrize(("extra", "status"), [({":method": "GET"}, "405"), ({"content_type": "text/html"}, "415")])
def test_what_is_not_grpc_gets_an_http_status(server: Running, extra: dict[str, str], status: str) -> None:
    with H2Client(server.grpc) as client:
        client.call(1, b"", **extra)
        assert client.answer(1)[0][":status"] == status
        assert client.well(3)


def test_a_call_can_be_reset(server: Running) -> None:
    with H2Client(server.grpc) as client:
        client.send(headers(client, 1), h2.rst_stream(1, Code.CANCEL), h2.frame(h2.DATA, 1, 1, b""))
        assert client.until(h2.RST_STREAM, 1).code == Code.STREAM_CLOSED
        assert client.well(3)


# what is not


def test_faults_of_one_stream_end_that_stream(server: Running) -> None:
    long = "x" * 200
    cases = [
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, h2.END_HEADERS) + headers(c, 1, h2.END_HEADERS)),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, Upper=long).replace(b"Upper", b"UPPER")),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, connection="close")),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, te="gzip")),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, **{":other": "1"})),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.HEADERS, 5, 1, c.encoder.encode([(":method", "POST")]))),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1) + h2.window_update(1, 0)),
        (Code.FLOW_CONTROL_ERROR, lambda c: headers(c, 1) + h2.window_update(1, h2.MAX_WINDOW)),
        (Code.FRAME_SIZE_ERROR, lambda c: headers(c, 1) + h2.frame(h2.PRIORITY, 0, 1, b"\0")),
        (Code.STREAM_CLOSED, lambda c: headers(c, 1, method="ModelStreamInfer") + _ended_twice()),
    ]
    for code, made in cases:
        with H2Client(server.grpc) as client:
            client.send(made(client))
            assert client.until(h2.RST_STREAM, 1).code == code
            assert client.well(3)


def _ended_twice() -> bytes:
    end = h2.frame(h2.DATA, h2.END_STREAM, 1, b"")
    return end + end


def test_faults_of_the_connection_end_it(server: Running) -> None:
    opened = lambda c: headers(c, 1)  # noqa: E731
    cases = [
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.DATA, 0, 1, b"x")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.DATA, 0, 0, b"x")),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 2)),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 0)),
        (Code.STREAM_CLOSED, lambda c: headers(c, 5, 5) + headers(c, 3)),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, 0) + h2.frame(h2.PING, 0, 0, b"12345678")),
        (Code.PROTOCOL_ERROR, lambda c: headers(c, 1, 0) + h2.frame(h2.CONTINUATION, 4, 3, b"")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.CONTINUATION, 4, 1, b"")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2")),
        (Code.PROTOCOL_ERROR, lambda c: h2.window_update(0, 0)),
        (Code.FLOW_CONTROL_ERROR, lambda c: h2.window_update(0, h2.MAX_WINDOW)),
        (Code.FLOW_CONTROL_ERROR, lambda c: h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 31})),
        (Code.PROTOCOL_ERROR, lambda c: h2.settings({h2.MAX_FRAME_SIZE: 100})),
        (Code.PROTOCOL_ERROR, lambda c: h2.settings({h2.ENABLE_PUSH: 2})),
        (Code.FRAME_SIZE_ERROR, lambda c: h2.frame(h2.SETTINGS, 0, 0, b"12345")),
        (Code.FRAME_SIZE_ERROR, lambda c: h2.frame(h2.SETTINGS, h2.ACK, 0, b"123456")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.SETTINGS, 0, 1)),
        (Code.FRAME_SIZE_ERROR, lambda c: h2.frame(h2.PING, 0, 0, b"1")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.PING, 0, 1, b"12345678")),
        (Code.FRAME_SIZE_ERROR, lambda c: opened(c) + h2.frame(h2.RST_STREAM, 0, 1, b"1")),
        (Code.PROTOCOL_ERROR, lambda c: h2.rst_stream(7, Code.CANCEL)),
        (Code.FRAME_SIZE_ERROR, lambda c: opened(c) + h2.frame(h2.WINDOW_UPDATE, 0, 1, b"1")),
        (Code.FRAME_SIZE_ERROR, lambda c: h2.frame_head(1 << 20, h2.DATA, 0, 1)),
        (Code.PROTOCOL_ERROR, lambda c: opened(c) + h2.frame(h2.DATA, h2.PADDED, 1, b"\x05abc")),
        (Code.PROTOCOL_ERROR, lambda c: opened(c) + h2.frame(h2.DATA, h2.PADDED, 1, b"")),
        (Code.PROTOCOL_ERROR, lambda c: h2.frame(h2.HEADERS, h2.PADDED | 4, 1, b"\x05abc")),
        (Code.FRAME_SIZE_ERROR, lambda c: h2.frame(h2.HEADERS, h2.HAS_PRIORITY | 4, 1, b"abc")),
        (Code.COMPRESSION_ERROR, lambda c: h2.frame(h2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff")),
        (Code.COMPRESSION_ERROR, lambda c: h2.frame(h2.HEADERS, 4, 1, b"\x3f\xff\xff\x7f")),
    ]
    for number, (code, made) in enumerate(cases):
        with H2Client(server.grpc) as client:
            client.send(made(client))
            assert client.goaway().code == code, number
    with H2Client(server.grpc) as client:
        assert client.well(1)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\0" * 100,
    ],
)
def test_other_protocols_are_told(server: Running, data: bytes) -> None:
    with H2Client(server.grpc, greet=False) as client:
        client.send(data)
        frame = client.goaway()
        assert frame.code == Code.PROTOCOL_ERROR
        assert b"HTTP/2" in frame.payload


def test_settings_come_first(server: Running) -> None:
    for first in (h2.frame(h2.PING, 0, 0, b"12345678"), h2.frame(h2.SETTINGS, h2.ACK, 0)):
        with H2Client(server.grpc, greet=False) as client:
            client.send(h2.PREFACE, first)
            assert client.goaway().code == Code.PROTOCOL_ERROR
