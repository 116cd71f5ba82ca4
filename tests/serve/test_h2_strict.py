"""The `h2` library, a strict state machine, on the other side: it raises at whatever HTTP/2 does not allow."""

from __future__ import annotations

import random
import socket

import h2.config
import h2.connection
import h2.events
import h2.settings
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.serve.h2_client import PATH, infer_message
from tests.serve.running import Running


class Strict:
    """A client whose every byte, both ways, the library agrees with."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.machine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.bodies: dict[int, bytes] = {}
        self.fields: dict[int, dict[bytes, bytes]] = {}
        self.done: set[int] = set()

    def __enter__(self) -> Strict:
        self.machine.initiate_connection()
        self.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.machine.data_to_send())

    def open(self, number: int, method: str) -> None:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", PATH + method), (":authority", "a")]
        self.machine.send_headers(number, [*fields, ("content-type", "application/grpc"), ("te", "trailers")])

    def read(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, "the server closed the connection"
        for event in self.machine.receive_data(data):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                self.fields.setdefault(event.stream_id, {}).update(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.done.add(event.stream_id)
            elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                raise AssertionError(event)
        self.flush()


def test_interleaved_calls_of_all_sizes(server: Running) -> None:
    with Strict(server.grpc) as client:
        assert_interleaved_calls_answer(client)


def assert_interleaved_calls_answer(client: Strict) -> None:
    rng = random.Random(7)
    left: dict[int, bytes] = {}
    rows: dict[int, np.ndarray] = {}
    for k in range(60):
        number = 2 * k + 1
        rows[number] = np.full((rng.choice([1, 2, 50, 3000, 30_000]), 4), k, np.float32)
        left[number] = infer_message(rows[number], id=str(k))
    opened: set[int] = set()
    while len(client.done) < len(rows):
        for _ in range(8):
            waiting = [n for n in left if n in opened] + [n for n in left if n not in opened][:1]
            if not waiting:
                break
            number = rng.choice(waiting)
            if number not in opened:
                client.open(number, "ModelInfer")
                opened.add(number)
            window = client.machine.local_flow_control_window(number)
            size = min(window, client.machine.max_outbound_frame_size, rng.choice([1, 100, 16_384]), len(left[number]))
            piece, left[number] = left[number][:size], left[number][size:]
            padding = rng.choice([None, None, 3]) if size + 10 < window else None
            client.machine.send_data(number, piece[: size - 5] if padding else piece, pad_length=padding)
            if padding:
                client.machine.send_data(number, piece[size - 5 :])
            if not left[number]:
                client.machine.end_stream(number)
                del left[number]
        client.machine.ping(b"abcdefgh")
        if rng.random() < 0.1:
            settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: rng.choice([100, 65_535, 1 << 20])}
            client.machine.update_settings(settings)
        client.flush()
        client.read()
    for number, x in rows.items():
        assert client.fields[number][b"grpc-status"] == b"0"
        answer = pb.ModelInferResponse.FromString(client.bodies[number][5:])
        assert answer.id == str(number // 2)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 3)
        assert np.array_equal(got, x[:, :3] + x[:, 3:] / 2)


def test_a_stream_and_its_backpressure(server: Running) -> None:
    with Strict(server.grpc) as client:
        assert_a_stream_answers_under_backpressure(client)


def assert_a_stream_answers_under_backpressure(client: Strict) -> None:
    client.open(1, "ModelStreamInfer")
    client.flush()
    x = np.ones((5000, 4), np.float32)
    left = b"".join(infer_message(x, id=str(i)) for i in range(60))
    while 1 not in client.done:
        window = client.machine.local_flow_control_window(1)
        size = min(window, 16_384, len(left))
        if size:
            client.machine.send_data(1, left[:size])
            left = left[size:]
            if not left:
                client.machine.end_stream(1)
        else:
            client.read()
        client.flush()
    body, ids = client.bodies[1], []
    while body:
        size = int.from_bytes(body[1:5], "big")
        ids.append(pb.ModelStreamInferResponse.FromString(body[5 : 5 + size]).infer_response.id)
        body = body[5 + size :]
    assert ids == [str(i) for i in range(60)]
    assert client.fields[1][b"grpc-status"] == b"0"
