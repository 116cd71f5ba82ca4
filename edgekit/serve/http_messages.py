"""HTTP requests and answers between the door, which knows bytes, and the routes, which know what is asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias

import msgspec

from edgekit.errors import EdgekitError, InputError
from edgekit.serve.app import Cancel, status_of
from edgekit.serve.messages import RequestError

LOGGER = logging.getLogger(__name__)

JSON = b"application/json"
BINARY = b"application/octet-stream"

_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    for status in (200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 431, 500, 501, 503, 504)
}

_ERROR_CHARACTERS = 600


@dataclass(slots=True)
class HttpRequest:
    """One request as the door read it; header names in lower case, only those that are used.

    `known` is its head if that came before. `cancel` gives it up while it waits, when its client is gone.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes = b""
    keep_alive: bool = True
    old: bool = False
    arrived_ns: int = 0
    known: KnownHead | None = None
    cancel: Cancel | None = None


@dataclass(slots=True)
class HttpResponse:
    """One answer: `parts` are the body, in order; `headers` are whole lines, each with its line end."""

    status: int
    parts: list[bytes | memoryview] = field(default_factory=list)
    content_type: bytes = JSON
    headers: bytes = b""

    def head(self, size: int, connection: bytes = b"") -> bytes:
        """Status line and headers of a body of `size` bytes; `connection` is a whole line, or nothing."""
        kind = b"Content-Type: %b\r\n" % self.content_type if self.parts else b""
        first = _STATUS_LINES[self.status]
        return b"%b%b%b%bContent-Length: %d\r\n\r\n" % (first, kind, self.headers, connection, size)


Respond: TypeAlias = Callable[[HttpResponse], None]
Handler: TypeAlias = Callable[[HttpRequest, Respond], None]
Send: TypeAlias = Callable[[HttpResponse | bytes], None]
"""Takes an answer, or the bytes of a whole one, from its status line on."""


class Repeating(Protocol):
    """Answers a request whose head was seen before, if it is in all but its tensors one that was answered before."""

    @property
    def holds(self) -> bool:
        """Whether nothing has changed that it rests on."""
        ...

    joins: bool
    """Whether `join` is to be asked before `now`."""

    def join(self, data: bytes, end: int, send: Send) -> bool:
        """Answer the request in `data`, whose body begins at `end`, as this turn ends; False if that cannot be."""
        ...

    def now(self, data: bytes, end: int) -> bytes | HttpResponse | None:
        """The answer to the request in `data`, whose body begins at `end`, if it can be had at once."""
        ...

    def later(self, request: HttpRequest, data: bytes, send: Send) -> bool:
        """Run `request`, which is in `data`, in its turn; False if that is not this one's to do."""
        ...


@dataclass(slots=True)
class KnownHead:
    """The head of a request that came before: `end` is where its body of `length` bytes begins.

    `repeating` answers such requests the short way; after `misses` it is not looked for again.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    end: int
    length: int
    repeating: Repeating | None = None
    misses: int = 0

    def request(self, data: bytes) -> HttpRequest:
        """The request that `data` is, with this head."""
        now_ns = time.perf_counter_ns()
        return HttpRequest(self.method, self.target, self.headers, data[self.end :], True, False, now_ns, self)


def error_response(error: Exception) -> HttpResponse:
    """What the client is told of `error`: its sentence, never a traceback."""
    status, headers, message = status_of(error), b"", str(error)
    if isinstance(error, (RequestError, InputError)):
        if isinstance(error, RequestError) and error.retry_after_s is not None:
            headers = b"Retry-After: %d\r\n" % error.retry_after_s
    elif isinstance(error, EdgekitError):
        LOGGER.error("a request failed: %s", error)
    else:
        LOGGER.error("a request failed", exc_info=error)
        message = f"The server failed on this request ({type(error).__name__}); its log says more."
    if len(message) > _ERROR_CHARACTERS:  # it may quote what the client sent
        message = message[:_ERROR_CHARACTERS] + "…"
    return json_response({"error": message}, status=status, headers=headers)


def json_response(document: Any, *, status: int = 200, headers: bytes = b"") -> HttpResponse:
    """`document` as JSON."""
    return HttpResponse(status, [msgspec.json.encode(document)], JSON, headers)
