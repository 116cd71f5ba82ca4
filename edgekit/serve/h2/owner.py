"""What a connection asks of the door that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edgekit.serve.h2.headers import Head
from edgekit.serve.h2.limits import Limits
from edgekit.serve.h2.stream import Stream

if TYPE_CHECKING:
    from edgekit.serve.h2.connection import Connection


Whole: TypeAlias = "tuple[bytes, Sequence[bytes | memoryview], int, bytes]"
"""A whole answer: a header block, the parts of a body and its bytes, and a block of trailers."""

Given: TypeAlias = "Callable[[Whole | Exception], None]"
"""Takes a whole answer, or why there is none."""


class Owed(Enum):
    """In place of an answer: it is given as this turn of the loop ends."""

    SOON = auto()


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

    def at_once(self, head: Head, body: bytes, room: int, given: Given) -> Whole | Owed | None:
        """The whole answer to a call that came in one piece, where the door can give it at once.

        `Owed`: `given` is called with it as this turn of the loop ends; only for answers that are expected to have at
        most `room` bytes, for what the client allows meanwhile is not noticed. None: neither.
        """
        ...
