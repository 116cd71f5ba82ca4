"""Damaged frames and damaged messages: an answer or the end of the connection, never a fault of the server's own."""

from __future__ import annotations

import struct
import zlib

import hpack
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from edgekit.errors import InputError
from edgekit.serve.grpc.codec import split
from edgekit.serve.grpc.reader import InferReader
from edgekit.serve.grpc.schema import schema
from edgekit.serve.h2 import frames as h2
from edgekit.serve.messages import RequestError
from tests.serve.h2_client import PATH, Frame, H2Client, framed, infer_message
from tests.serve.running import Running

ENCODER = hpack.Encoder()
ENCODER.header_table_size = 0


def block(method: str, **extra: str) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a"}
    fields |= {"content-type": "application/grpc"} | {k.replace("_", "-"): v for k, v in extra.items()}
    return ENCODER.encode(list(fields.items()))


METHODS = [m.decode() for m in schema().methods] + ["/", "", "/x"]
BLOCKS = [block(m) for m in METHODS] + [
    block(PATH + "ModelInfer", grpc_encoding="gzip"),
    block(PATH + "ModelInfer", grpc_timeout="1n"),
    block(PATH + "ModelInfer", grpc_timeout="99999999H"),
    block(PATH + "ModelInfer", grpc_timeout="-1S"),
    b"\x82\x86\x84",
    b"\x40\x01a\x01b",
    b"\x20",
    b"\xff\xff\xff",
]
BODIES = [
    infer_message(),
    infer_message(id="7"),
    infer_message(np.ones((50, 4), np.float32)),
    framed(zlib.compress(infer_message()[5:]), packed=1),
    framed(b""),
    framed(b"\x0a\x04tiny"),
    b"",
    b"\0\0\0\0",
    b"\0\xff\xff\xff\xff",
    b"\1\0\0\0\1x",
]
STREAMS = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 7, 2, h2.MAX_STREAM_ID])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 11))
    number, flags = draw(STREAMS), draw(st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]))
    if kind == h2.HEADERS:
        payload = draw(st.sampled_from(BLOCKS))
    elif kind == h2.DATA:
        payload = draw(st.sampled_from(BODIES))
    elif kind == h2.SETTINGS:
        entry = st.tuples(st.integers(0, 8), st.sampled_from([0, 1, 2, 16_384, 65_535, 1 << 24, 1 << 31]))
        payload = b"".join(struct.pack(">HI", *item) for item in draw(st.lists(entry, max_size=4)))
    elif kind in (h2.WINDOW_UPDATE, h2.RST_STREAM):
        payload = draw(st.sampled_from([0, 1, 100, 65_535, h2.MAX_WINDOW])).to_bytes(4, "big")
    else:
        payload = draw(st.sampled_from([b"", b"12345678", b"\0\0\0\1\1", b"\0" * 17, b"\x82\x86"]))
    if draw(st.integers(0, 3)) == 0 and payload:
        at = draw(st.integers(0, len(payload) - 1))
        payload = payload[:at] + draw(st.binary(max_size=4)) + payload[at + draw(st.integers(0, 3)) :]
    return h2.frame(kind, flags, number, payload)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Frames in an order that makes some sense, some of them damaged, in any case many of a call's."""
    parts = draw(st.lists(frames(), max_size=12))
    if draw(st.booleans()):
        call = h2.frame(h2.HEADERS, 4, 1, draw(st.sampled_from(BLOCKS))) + h2.frame(
            h2.DATA, draw(st.sampled_from([0, 1])), 1, draw(st.sampled_from(BODIES))
        )
        parts.insert(draw(st.integers(0, len(parts))), call)
    data = h2.PREFACE + h2.settings({}) + b"".join(parts)
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=9)) + data[at + draw(st.integers(0, 9)) :]
    return data


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations())
def test_damaged_conversations(server: Running, data: bytes) -> None:
    with H2Client(server.grpc, greet=False) as client:
        try:
            client.send(data, h2.frame(h2.PING, 0, 0, b"the end!"))
        except (BrokenPipeError, ConnectionResetError):
            return
        received: list[Frame] = []
        client.socket.settimeout(1.0)
        try:
            for frame in client.frames():
                received.append(frame)
                if frame.kind == h2.GOAWAY or (frame.kind == h2.PING and frame.payload == b"the end!"):
                    break
        except TimeoutError:  # the damage swallowed the last frame: the server waits for the rest
            assert received
    for frame in received:
        if frame.kind in (h2.GOAWAY, h2.RST_STREAM):
            assert frame.code != h2.Code.INTERNAL_ERROR, frame
        if frame.kind == h2.HEADERS:  # a decoder of its own: the server's blocks leave its table alone
            fields = dict(hpack.Decoder().decode(frame.payload))
            assert fields.get("grpc-status") not in ("2", "13"), fields


def _seeds() -> list[bytes]:
    full = pb.ModelInferRequest(model_name="identity", model_version="1", id="a")
    full.parameters["priority"].uint64_param = 1
    full.parameters["sequence_id"].string_param = "x"
    item = full.inputs.add(name="in_int8", datatype="INT8", shape=[1, 2])
    item.contents.int_contents.extend([1, -1])
    item = full.inputs.add(name="in_string", datatype="BYTES", shape=[1, 2])
    item.contents.bytes_contents.extend([b"a", b"\xff"])
    full.outputs.add(name="out_int8").parameters["classification"].int64_param = 2
    shared = pb.ModelInferRequest(model_name="tiny")
    item = shared.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    item.parameters["shared_memory_region"].string_param = "r"
    item.parameters["shared_memory_byte_size"].int64_param = 16
    words = pb.ModelInferRequest(model_name="words", raw_input_contents=[b"\1\0\0\0a"])
    words.inputs.add(name="text", datatype="BYTES", shape=[1])
    return [infer_message()[5:], *(m.SerializeToString() for m in (full, shared, words))]


SEEDS = _seeds()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        piece = draw(
            st.one_of(st.binary(max_size=6), st.just(data[at:end] * 2), st.sampled_from([b"\xff" * 10, b"\x3a"]))
        )
        data = data[:at] + piece + data[end:]
    return data


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(damaged(), min_size=1, max_size=3))
def test_damaged_messages(server: Running, messages: list[bytes]) -> None:
    with H2Client(server.grpc) as client:
        for i, message in enumerate(messages):
            client.call(2 * i + 1, framed(message))
            fields, _ = client.answer(2 * i + 1)
            assert fields["grpc-status"] not in ("2", "13"), fields


@settings(max_examples=600, deadline=None)
@given(damaged())
def test_raw_tensors_are_split_off_as_protobuf_reads_them(data: bytes) -> None:
    try:
        rest, raws, offsets = split(memoryview(data))
    except InputError:
        rest = b""
    else:
        for raw, offset in zip(raws, offsets):
            assert data[offset : offset + len(raw)] == bytes(raw)
    try:
        whole = pb.ModelInferRequest.FromString(data)
    except Exception:
        return  # whatever split made of it, the rest is not parsed either, or the reader says so
    if rest or not data:
        assert [bytes(r) for r in raws] == list(whole.raw_input_contents)
        del whole.raw_input_contents[:]
        assert pb.ModelInferRequest.FromString(rest) == whole


def test_the_server_is_well_after_all_that(server: Running) -> None:
    with H2Client(server.grpc) as client:
        assert client.well(1)
    assert server.process.poll() is None


def test_a_reader_that_was_taught_reads_the_same() -> None:
    """What is recalled from memory equals what is parsed, whatever comes between."""

    class Spec:
        dtype = "float32"

    class Tiny:
        name = "tiny"
        input_specs = {"x": Spec()}  # noqa: RUF012

    model = Tiny()

    def find(name: str, _version: str) -> Tiny:
        if name != "tiny":
            raise RequestError(404, "no")
        return model

    reader = InferReader(find)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    recalled = 0
    for _ in range(400):
        rows = int(rng.integers(1, 4))
        x = rng.standard_normal((rows, 4)).astype(np.float32)
        message = infer_message(x, model_version=str(rng.choice(["", "1"])), id=str(rng.choice(["", "a", "é7"])))
        if rng.random() < 0.2:
            at = int(rng.integers(5, 35))
            message = message[:at] + bytes(rng.integers(0, 256, 1, np.uint8)) + message[at + 1 :]
        known = reader.recall(message)
        try:
            _, plain = InferReader(find).read(message[5:])  # type: ignore[arg-type]
            reader.read(message[5:])
        except (InputError, RequestError):
            assert known is None
            continue
        if known is not None:
            recalled += 1
            assert known[1].id == plain.id
            assert known[1].outputs == plain.outputs
            assert known[1].parameters == plain.parameters
            assert known[1].feed.keys() == plain.feed.keys()
            for name, value in plain.feed.items():
                assert known[1].feed[name].dtype == value.dtype
                assert known[1].feed[name].tobytes() == value.tobytes()
                assert known[1].feed[name].shape == value.shape
    assert recalled > 200
