"""One stream: what a door's own class gets to hear of it, and how that class answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from edgekit.serve.h2.frames import Code

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection


class Stream(ABC):
    """One request and its answer. A door's class overrides `opened`, `received`, `dropped`, `fail`, `drained`,
    `check_time`.

    `remote_open`: the client may send more. `receive_window`, `send_window`: bytes that either side may still send.
    `pending`, `backlog`: what waits for the client's window, and its bytes; `trailers` follow it. `since`: when
    something last moved, by the loop's clock. `held`: bytes of incoming messages that this stream keeps.
    """

    reading = remote_open = True
    pending: deque[memoryview] | None = None
    backlog = held = 0
    trailers: bytes | None = None

    def __init__(self, connection: Connection, stream_id: int, send_window: int) -> None:
        self.connection, self.id, self.send_window = connection, stream_id, send_window
        self.receive_window = connection.limits.stream_window_bytes
        self.since = connection.heard

    # what happens, for a door's class to say

    @abstractmethod
    def opened(self) -> None:
        """The stream is counted and can be answered; `remote_open` tells whether a body follows."""

    @abstractmethod
    def received(self, data: bytes | memoryview, ended: bool) -> None:
        """A piece of the body came; with `ended`, the last."""

    @abstractmethod
    def dropped(self) -> None:
        """Nobody waits for an answer any more; none can be sent."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """End the answer with an error."""

    @abstractmethod
    def drained(self) -> None:
        """All that was sent has left, and `end` was not called yet."""

    def check_time(self, now: float) -> None:
        """About once a second: let go of a client that takes too long; `now` is the loop's time."""
        if self.backlog and now - self.since > self.connection.limits.write_s:
            self.connection.reset(self.id, Code.CANCEL)

    # what a door's class does

    def hold(self, size: int) -> None:
        """Count `size` bytes of an incoming message (negative: let go of them)."""
        self.held += size
        self.connection.door.buffered += size

    def read_on(self, reading: bool) -> None:
        """Let the client send more than the window that it has, or not."""
        self.reading = reading
        if reading:
            self.connection.open_window(self)
