"""What a connection asks of the door that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edgekit.serve.h2.headers import Head
from edgekit.serve.h2.limits import Limits
from edgekit.serve.h2.stream import Stream

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection


Whole: TypeAlias = "tuple[bytes, Sequence[bytes | memoryview], int, bytes]"
"""A whole answer: a header block, the parts of a body and its bytes, and a block of trailers."""


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

    def at_once(self, head: Head, body: bytes) -> Whole | None:
        """The whole answer to a call that came in one piece, where the door can give it at once."""
        ...
