"""HTTP requests and answers between the door, which knows bytes, and the routes, which know what is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from edgekit.errors import EdgekitError, InputError
from edgekit.serve.app import Cancel, status_of
from edgekit.serve.messages import RequestError

LOGGER = logging.getLogger(__name__)

JSON = b"application/json"

_ERROR_CHARACTERS = 600


@dataclass(slots=True)
class HttpRequest:
    """One request as the door read it; header names in lower case, only those that are used.

    `cancel` gives it up while it waits, when its client is gone.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes = b""
    keep_alive: bool = True
    old: bool = False
    arrived_ns: int = 0
    cancel: Cancel | None = None


@dataclass(slots=True)
class HttpResponse:
    """One answer: `parts` are the body, in order; `headers` are whole lines, each with its line end."""

    status: int
    parts: list[bytes | memoryview] = field(default_factory=list)
    content_type: bytes = JSON
    headers: bytes = b""


Respond: TypeAlias = Callable[[HttpResponse], None]
Handler: TypeAlias = Callable[[HttpRequest, Respond], None]


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
