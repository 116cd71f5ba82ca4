"""What the head of a call asks for: which method, for how long, in which encoding."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgekit.serve.grpc.status import CallError, Status, call_error, error_block, http_block
from edgekit.serve.h2.headers import Head
from edgekit.serve.messages import RequestError

Answer: TypeAlias = Callable[[Any], bytes]
"""Answers one request message with a response message, at once."""

INFER, STREAM = "infer", "stream"

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KIND = re.compile(rb"application/grpc(\+proto)?\s*(;.*)?", re.IGNORECASE)
_ENCODINGS = ("", "gzip", "deflate")


@dataclass(frozen=True, slots=True)
class Later:
    """A method that takes its time: `ask` takes a request message and a function to be called with the response."""

    ask: Callable[[Any, Callable[[bytes | Exception], None]], None]


Method: TypeAlias = "str | Answer | Later"


@dataclass(frozen=True, slots=True)
class Route:
    """What to do with a call.

    `method` is INFER, STREAM, or answers a message. `refusal` is the header block of an answer that is known already.
    `statuses` says that an error ends a stream of inferences instead of being one of its messages.
    """

    method: Method = ""
    timeout_s: float | None = None
    encoding: str = ""
    statuses: bool = False
    refusal: bytes | None = None


Check: TypeAlias = Callable[[bytes, "bytes | None"], None]
"""Raises RequestError unless the `authorization` header is enough for the method of a path."""


def route_of(head: Head, methods: Mapping[bytes, Method], check: Check | None = None) -> Route:
    """The route of a call; `methods` by their path. `check` asks who calls."""
    headers = head.headers
    if head.method != b"POST":
        return Route(refusal=http_block(405))
    if _KIND.fullmatch(headers.get(b"content-type", b"")) is None:
        return Route(refusal=http_block(415))
    try:
        if check is not None:
            check(head.path, headers.get(b"authorization"))
        method = methods.get(head.path)
        if method is None:
            path = head.path[:200].decode(errors="replace")
            raise CallError(Status.UNIMPLEMENTED, f"Method '{path}' is not one that this server answers.")
        encoding = headers.get(b"grpc-encoding", b"identity").decode("latin-1").lower().replace("identity", "")
        if encoding not in _ENCODINGS:
            raise CallError(
                Status.UNIMPLEMENTED, f"grpc-encoding '{encoding[:40]}' is not known; expected gzip or deflate."
            )
        return Route(
            method, _seconds(headers.get(b"grpc-timeout")), encoding, headers.get(b"triton_grpc_error") == b"true"
        )
    except (CallError, RequestError) as error:
        return Route(refusal=error_block(call_error(error)))


def _seconds(text: bytes | None) -> float | None:
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        raise CallError(Status.INVALID_ARGUMENT, "grpc-timeout is not up to 8 digits and a unit (H, M, S, m, u, n).")
    return int(found.group(1)) * _UNIT_S[found.group(2)]
