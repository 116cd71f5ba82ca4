"""What one client of an HTTP/2 door may cost."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.serve.h2 import frames as h2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may cost.

    Attributes:
        message_bytes: longest message, also after decoding it.
        buffered_bytes: what all connections hold together: messages that are not complete or not answered yet, and
            answers that wait for their reader.
        backlog_bytes: answers that may wait on one connection before it gets no more.
        header_bytes: longest header list (as RFC 9113 counts it) and longest encoded block.
        continuations: CONTINUATION frames that one block may take.
        connections: connections at one time; more are turned away.
        streams: calls that one connection may have open.
        stream_window_bytes, window_bytes: what a client may send unread, on one stream and on the connection.
        frame_bytes: longest frame.
        noise: frames that ask for work and carry nothing (PING, SETTINGS, resets, empty frames, …): so many at once,
            and `noise_rate` a second after that. A call that is answered earns a few more.
        head_s: time for the connection's preface, and for the answer to our settings.
        body_s, body_rate: time for a message, plus a second for each `body_rate` bytes that came.
        idle_s: time that a connection without a call is kept.
        ping_s, pong_s: silence after which a client is asked whether it is there, and time for it to say so.
        write_s: time that a client may leave its answer unread.
    """

    message_bytes: int = 128 << 20
    buffered_bytes: int = 512 << 20
    backlog_bytes: int = 64 << 20
    header_bytes: int = 16 << 10
    continuations: int = 8
    connections: int = 1024
    streams: int = 256
    stream_window_bytes: int = 1 << 20
    window_bytes: int = 8 << 20
    frame_bytes: int = 16 << 10
    noise: int = 2000
    noise_rate: float = 500.0
    head_s: float = 10.0
    body_s: float = 20.0
    body_rate: float = 4096.0
    idle_s: float = 600.0
    ping_s: float = 60.0
    pong_s: float = 20.0
    write_s: float = 30.0

    def announced(self) -> dict[int, int]:
        """What a client is told of them, as SETTINGS."""
        return {
            h2.MAX_CONCURRENT_STREAMS: self.streams,
            h2.INITIAL_WINDOW_SIZE: self.stream_window_bytes,
            h2.MAX_FRAME_SIZE: self.frame_bytes,
            h2.MAX_HEADER_LIST_SIZE: self.header_bytes,
        }
