"""What a connection asks of the door that it belongs to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from edgekit.serve.h2.headers import Head
from edgekit.serve.h2.limits import Limits
from edgekit.serve.h2.stream import Stream

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection


class Owner(Protocol):
    """The door that a connection belongs to."""

    limits: Limits
    loop: asyncio.AbstractEventLoop
    connections: set[Connection]
    buffered: int
    draining: bool

    def new_stream(self, connection: Connection, stream_id: int, send_window: int, head: Head) -> Stream:
        """A stream of the door's own class for what `head` asks."""
        ...
