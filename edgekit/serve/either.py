"""One socket for both doors: what the client says first tells whether it speaks HTTP/1.1 or HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

_HTTP2 = b"PRI * HTTP/2"


class Either(asyncio.Protocol):
    """A connection that is HTTP/1.1's until its first bytes say otherwise."""

    def __init__(self, http: Callable[[], asyncio.Protocol], http2: Callable[[], asyncio.Protocol] | None) -> None:
        self._own, self._other = http(), http2
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came; the limits of the HTTP/1.1 door hold until it speaks."""
        self._transport = cast(asyncio.Transport, transport)
        self._own.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """The first bytes: from here on the transport belongs to one of the doors."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._other is not None and data.startswith(_HTTP2):
            self._own.connection_lost(None)
            self._own = self._other()
            transport.set_protocol(self._own)
            self._own.connection_made(transport)
        else:
            transport.set_protocol(self._own)
        self._own.data_received(data)

    def eof_received(self) -> bool | None:
        """The client said nothing."""
        return self._own.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._own.connection_lost(exc)

    def pause_writing(self) -> None:
        """As the door's."""
        self._own.pause_writing()

    def resume_writing(self) -> None:
        """As the door's."""
        self._own.resume_writing()
