"""Where clients come in: listening sockets, each before the door that speaks its protocol, with TLS or without."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.serve.either import Either
from edgekit.serve.listen import BACKLOG, Sockets

if TYPE_CHECKING:
    from edgekit.serve.tls import TlsFiles

HANDSHAKE_S = 10.0
"""How long a client may take to agree on TLS."""


class Listening(Protocol):
    """What a server asks of a door: see `edgekit.serve.http.Door`."""

    connections: Any
    loop: asyncio.AbstractEventLoop

    def __call__(self) -> asyncio.Protocol:
        """A protocol for one more connection."""
        ...

    def sweep(self) -> None:
        """Let go of clients that take too long."""
        ...

    def drain(self) -> None:
        """Answer what was asked, and close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def close(self) -> None:
        """Let go of threads, once no connection is left."""
        ...


class Entrance:
    """The sockets of a server, which it owns from here on. Unix sockets take both protocols, without TLS."""

    def __init__(self, sockets: Sockets, *, http: Listening, grpc: Listening | None, tls: TlsFiles | None) -> None:
        self._sockets, self._tls = sockets, tls
        self._http, self._grpc = http, grpc
        self._listeners: list[asyncio.AbstractServer] = []

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take connections; again: with certificates read anew, for connections from now on.

        Raises:
            UsageError: a certificate cannot be used; what was open stays so.
        """
        plans: list[tuple[socket.socket, Callable[[], asyncio.Protocol], ssl.SSLContext | None]] = []
        for sockets, door, protocol in (
            (self._sockets.http, self._http, "http/1.1"),
            (self._sockets.grpc, self._grpc, "h2"),
        ):
            if sockets and door is not None:
                context = None if self._tls is None else self._tls.context(protocol)
                plans += [(one, door, context) for one in sockets]
        plans += [(one, partial(Either, self._http, self._grpc), None) for one in self._sockets.unix]
        before, self._listeners = self._listeners, []
        for one, factory, context in plans:
            # a copy: closing a listener closes its socket, and those that wait in it would be turned away
            self._listeners.append(
                await loop.create_server(
                    factory,
                    sock=one.dup(),
                    backlog=BACKLOG,
                    ssl=context,
                    ssl_handshake_timeout=None if context is None else HANDSHAKE_S,
                )
            )
        for listener in before:
            listener.close()

    def close(self) -> None:
        """Take no more connections."""
        for listener in self._listeners:
            listener.close()
        self._sockets.remove_files()
        self._sockets.close()
