"""One HTTP/2 connection that sends exactly the frames it is given, and reads what comes back as frames."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import hpack
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from edgekit.serve.h2 import frames as h2

PATH = "/inference.GRPCInferenceService/"


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == h2.RST_STREAM else self.payload[4:8], "big")


def framed(message: bytes, *, packed: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return bytes((packed,)) + len(message).to_bytes(4, "big") + message


def infer_message(x: np.ndarray | None = None, model: str = "tiny", **fields: object) -> bytes:
    """A ModelInferRequest with its prefix."""
    x = np.ones((1, 4), np.float32) if x is None else x
    out = pb.ModelInferRequest(model_name=model, **fields)
    out.inputs.add(name="x", datatype="FP32", shape=x.shape)
    out.raw_input_contents.append(x.tobytes())
    return framed(out.SerializeToString())


class H2Client:
    """`greet` opens the connection as HTTP/2 asks; a test that does not want that sends its own bytes."""

    def __init__(self, address: str, *, greet: bool = True, settings: dict[int, int] | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._buffer = b""
        if greet:
            self.send(h2.PREFACE, h2.settings(settings or {}))

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Bytes as they are."""
        self.socket.sendall(b"".join(parts))

    def block(self, method: str = "ModelInfer", **extra: str) -> bytes:
        """A header block that asks for a method. Underscores of `extra` names become hyphens."""
        fields = {":method": "POST", ":scheme": "http", ":path": PATH + method, ":authority": "test"}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        fields |= {name.replace("_", "-"): value for name, value in extra.items()}
        return self.encoder.encode(list(fields.items()))

    def call(self, stream: int, body: bytes, method: str = "ModelInfer", **extra: str) -> None:
        """A whole call, in the largest frames that any server takes."""
        out = [h2.frame(h2.HEADERS, h2.END_HEADERS, stream, self.block(method, **extra))]
        pieces = [body[i : i + 16384] for i in range(0, len(body), 16384)] or [b""]
        out += [h2.frame(h2.DATA, 0, stream, piece) for piece in pieces[:-1]]
        self.send(*out, h2.frame(h2.DATA, h2.END_STREAM, stream, pieces[-1]))

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it closes the connection."""
        while True:
            while len(self._buffer) < 9 or len(self._buffer) < 9 + int.from_bytes(self._buffer[:3], "big"):
                try:
                    data = self.socket.recv(1 << 16)
                except ConnectionResetError:
                    return
                if not data:
                    return
                self._buffer += data
            size = int.from_bytes(self._buffer[:3], "big")
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            yield Frame(kind, flags, stream, payload)

    def until(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of a kind (and stream)."""
        for frame in self.frames():
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
        raise AssertionError("the connection closed first")

    def answer(self, stream: int) -> tuple[dict[str, str], bytes]:
        """The header fields (trailers too) and the body of a call."""
        fields: dict[str, str] = {}
        body = b""
        for frame in self.frames():
            if frame.kind == h2.HEADERS:
                decoded = dict(self.decoder.decode(frame.payload))
                fields |= decoded if frame.stream == stream else {}
            if frame.stream == stream:
                assert frame.kind != h2.RST_STREAM, frame.code
                body += frame.payload if frame.kind == h2.DATA else b""
                if frame.flags & h2.END_STREAM and frame.kind in (h2.HEADERS, h2.DATA):
                    return fields, body
            assert frame.kind != h2.GOAWAY, frame.payload
        raise AssertionError("the connection closed first")

    def well(self, stream: int) -> bool:
        """Whether an inference on `stream` is answered rightly."""
        self.call(stream, infer_message())
        fields, body = self.answer(stream)
        message = pb.ModelInferResponse.FromString(body[5:])
        values = np.frombuffer(message.raw_output_contents[0], np.float32)
        return fields["grpc-status"] == "0" and values.tolist() == [1.5, 1.5, 1.5]

    def goaway(self) -> Frame:
        """The GOAWAY that ends the connection; nothing follows it but the end."""
        frame = self.until(h2.GOAWAY)
        assert not list(self.frames())
        return frame


def headers(client: H2Client, stream: int, flags: int = h2.END_HEADERS, **extra: str) -> bytes:
    """A HEADERS frame that asks for a method."""
    return h2.frame(h2.HEADERS, flags, stream, client.block(**extra))
