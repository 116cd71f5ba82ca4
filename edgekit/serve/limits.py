"""What one client of the HTTP door may cost the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may cost.

    Attributes:
        body_bytes: longest body, also after decoding it.
        buffered_bytes: bodies of all connections that are not complete yet, together.
        target_bytes, head_bytes, headers: longest request target, longest head, most header lines.
        connections: connections at one time; more are answered 503.
        pipelined: requests that one connection may have waiting; it is not read from beyond that.
        head_s: time for a whole head, from its first byte.
        body_s, body_rate: time for a body, plus a second for each `body_rate` bytes that came.
        idle_s: time between requests.
        write_s: time that a client may leave its answer unread.
        linger_s: time to read and discard what a refused client still sends, so that it sees the refusal.
    """

    body_bytes: int = 128 << 20
    buffered_bytes: int = 512 << 20
    target_bytes: int = 8 << 10
    head_bytes: int = 32 << 10
    headers: int = 100
    connections: int = 1024
    pipelined: int = 16
    head_s: float = 10.0
    body_s: float = 20.0
    body_rate: float = 4096.0
    idle_s: float = 75.0
    write_s: float = 30.0
    linger_s: float = 3.0
