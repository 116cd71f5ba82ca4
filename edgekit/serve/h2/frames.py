"""Frames of HTTP/2 as bytes (RFC 9113, section 4 to 7), and the errors that end a stream or a connection."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

MAX_WINDOW = MAX_STREAM_ID = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
LARGEST_FRAME = 2**24 - 1
FRAME_HEAD_BYTES = 9

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_GOAWAY = struct.Struct(">II")

unpack_head = _HEAD.unpack_from
"""The head of a frame: upper 16 and lower 8 bits of its length, kind, flags, stream (upper bit to be ignored)."""


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):  # noqa: N818 - the protocol's own word is "connection error"; it is the peer's
    """The peer broke the protocol, or a limit, in a way that ends the connection."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


class StreamFault(Exception):  # noqa: N818 - as above
    """The peer broke the protocol on one stream; others go on."""

    def __init__(self, stream: int, code: Code) -> None:
        super().__init__(code.name)
        self.stream, self.code = stream, code


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's payload of `length` bytes."""
    return _HEAD.pack(length >> 8, length & 255, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values of a SETTINGS frame, in order. `payload` is a multiple of 6 bytes."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst_stream(stream: int, code: Code) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, int(code).to_bytes(4, "big"))


def goaway(last_stream: int, code: Code, why: str = "") -> bytes:
    """A GOAWAY frame; `why` is for whoever debugs the peer."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream, code) + why.encode()[:256])


def block_of(flags: int, payload: bytes) -> bytes:
    """The header block in the payload of a HEADERS frame. Raises ConnectionFault: padding or priority do not fit."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not payload or payload[0] >= stop:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
        start, stop = 1, stop - payload[0]
    if flags & HAS_PRIORITY:
        if stop - start < 5:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a HEADERS frame is too short")
        start += 5
    return payload[start:stop]
