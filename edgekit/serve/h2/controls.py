"""Frames about streams and the connection themselves: resets, settings, pings, windows, leaving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.serve.h2 import frames as h2
from edgekit.serve.h2.frames import Code, ConnectionFault, StreamFault

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection

LEAVING = b"leaving!"
"""What a PING says that a client answers once it has heard that we leave."""

RESET_COST = 5
"""A stream that is opened and given up costs as much as this many PINGs."""


class Controls:
    """Acts on the frames of one connection that carry nothing. Each raises ConnectionFault or StreamFault."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._actions = {
            h2.PRIORITY: self._on_priority,
            h2.RST_STREAM: self._on_reset,
            h2.SETTINGS: self._on_settings,
            h2.PUSH_PROMISE: self._on_push,
            h2.PING: self._on_ping,
            h2.GOAWAY: self._on_goaway,
            h2.WINDOW_UPDATE: self._on_window,
        }

    def act(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        """One frame; what is not known is passed over."""
        self._connection.cost(1)
        action = self._actions.get(kind)
        if action is not None:
            action(number, flags, payload)

    def _on_priority(self, number: int, _flags: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY without a stream")
        if len(payload) != 5:
            raise StreamFault(number, Code.FRAME_SIZE_ERROR)

    def _on_push(self, _number: int, _flags: int, _payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a client cannot push")

    def _on_reset(self, number: int, _flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if number > self._connection.last or not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"stream {number} is not open")
        stream = self._connection.streams.get(number)
        if stream is not None:
            self._connection.cost(RESET_COST)
            self._connection.forget(stream)
            stream.dropped()

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number or (flags & h2.ACK and not self._connection.settled):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS belong to the connection")
        if len(payload) % 6 or (flags & h2.ACK and payload):
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS have a wrong length")
        if flags & h2.ACK:
            self._connection.acknowledged = True
            return
        self._connection.settled = True
        self._connection.cost(len(payload) // 60)
        self._connection.output.write(
            h2.frame(h2.SETTINGS, h2.ACK, 0)
        )  # first: what they allow is used in frames after this
        for key, value in h2.read_settings(payload):
            if key == h2.INITIAL_WINDOW_SIZE:
                if value > h2.MAX_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
                self._connection.output.set_stream_window(value, list(self._connection.streams.values()))
            elif key == h2.MAX_FRAME_SIZE:
                if not h2.DEFAULT_FRAME <= value <= h2.LARGEST_FRAME:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self._connection.output.frame_bytes = min(value, 4 * h2.DEFAULT_FRAME)
            elif key == h2.HEADER_TABLE_SIZE:
                self._connection.output.set_table_size(value)
            elif key == h2.ENABLE_PUSH and value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "ENABLE_PUSH is not 0 or 1")

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PING belongs to the connection")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if not flags & h2.ACK:
            self._connection.output.write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif payload == LEAVING and self._connection.leaving_at:
            self._connection.refuse_more()

    def _on_goaway(self, number: int, _flags: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY is not one")
        self._connection.refusing = True

    def _on_window(self, number: int, _flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = int.from_bytes(payload, "big") & h2.MAX_WINDOW
        if not number:
            if not increment:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self._connection.output.widen(increment)
            return
        stream = self._connection.streams.get(number)
        if stream is None:
            if number > self._connection.last or not number & 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"stream {number} is not open")
        elif not increment:
            raise StreamFault(number, Code.PROTOCOL_ERROR)
        else:
            self._connection.output.widen_stream(stream, increment)
