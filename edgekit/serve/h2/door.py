"""What the connections of one HTTP/2 port share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from edgekit.serve.h2.connection import Connection
from edgekit.serve.h2.headers import Head
from edgekit.serve.h2.limits import Limits
from edgekit.serve.h2.owner import Given, Owed, Whole
from edgekit.serve.h2.stream import Stream


class H2Door(ABC):
    """Makes connections and looks after them. A subclass says what a stream is. `buffered`: bytes held for clients."""

    def __init__(self, *, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits, self.loop = limits, loop
        self.connections: set[Connection] = set()
        self.buffered = 0
        self.draining = False

    def __call__(self) -> Connection:
        """A protocol for one more connection."""
        return Connection(self)

    @abstractmethod
    def new_stream(self, connection: Connection, stream_id: int, send_window: int, head: Head) -> Stream:
        """A stream of the door's own class for what `head` asks."""

    def at_once(self, head: Head, body: bytes, room: int, given: Given) -> Whole | Owed | None:
        """The whole answer to a call that came in one piece, where the door can give it at once; it need not."""
        return None

    def sweep(self) -> None:
        """Let go of clients that take too long; to be called about once a second."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check_time(now)

    def drain(self) -> None:
        """Answer what was asked, and then close every connection."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in list(self.connections):
            connection.abort()
