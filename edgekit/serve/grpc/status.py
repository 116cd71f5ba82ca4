"""How a call ended, in gRPC's words and as the header block that says so."""

from __future__ import annotations

import logging
from enum import IntEnum

from edgekit.errors import EdgekitError, InputError
from edgekit.serve.h2.headers import STATUS_200, encode
from edgekit.serve.messages import RequestError

LOGGER = logging.getLogger(__name__)

_MAX_CHARACTERS = 600


class Status(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_OF_HTTP = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    408: Status.DEADLINE_EXCEEDED,
    409: Status.FAILED_PRECONDITION,
    413: Status.RESOURCE_EXHAUSTED,
    415: Status.UNIMPLEMENTED,
    429: Status.RESOURCE_EXHAUSTED,
    499: Status.CANCELLED,
    501: Status.UNIMPLEMENTED,
    503: Status.UNAVAILABLE,
    504: Status.DEADLINE_EXCEEDED,
}

_KIND = [(b"content-type", b"application/grpc")]
_ACCEPT = [(b"grpc-accept-encoding", b"identity,deflate,gzip")]

HEAD = STATUS_200 + encode(_KIND)
"""The header block of an answer whose messages are not compressed."""

TRAILERS = encode([(b"grpc-status", b"0")])
"""The header block that ends a call that went well."""


class CallError(EdgekitError):
    """A call that ends with `status`; `retry_after_s` is set when the same call may go well later."""

    def __init__(self, status: Status, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


def call_error(error: Exception) -> CallError:
    """What the client is told of `error`: its sentence, never a traceback."""
    status, retry, message = Status.INTERNAL, None, str(error)
    if isinstance(error, CallError):
        status, retry = error.status, error.retry_after_s
    elif isinstance(error, RequestError):
        retry = error.retry_after_s
        status = _OF_HTTP.get(error.status, Status.INTERNAL)
        if status == Status.UNAVAILABLE and retry is not None:
            status = Status.RESOURCE_EXHAUSTED  # there is a server, but it has too much to do
    elif isinstance(error, InputError):
        status = Status.INVALID_ARGUMENT
    elif isinstance(error, EdgekitError):
        LOGGER.error("a request failed: %s", error)
    else:
        LOGGER.error("a request failed", exc_info=error)
        message = f"The server failed on this request ({type(error).__name__}); its log says more."
    if len(message) > _MAX_CHARACTERS:  # it may quote what the client sent
        message = message[:_MAX_CHARACTERS] + "…"
    return CallError(status, message, retry_after_s=retry)


def head_block(encoding: str) -> bytes:
    """The header block of an answer whose messages may be compressed with `encoding`."""
    return HEAD + encode([(b"grpc-encoding", encoding.encode())]) if encoding else HEAD


def error_trailers(error: CallError) -> bytes:
    """The header block that ends a call with `error`."""
    fields = [(b"grpc-status", b"%d" % error.status), (b"grpc-message", percent_encoded(str(error)))]
    if error.retry_after_s is not None:
        fields.append((b"grpc-retry-pushback-ms", b"%d" % (1000 * error.retry_after_s)))
    return encode(fields)


def error_block(error: CallError) -> bytes:
    """The only header block of a call that ends with `error` before it has an answer."""
    accept = encode(_ACCEPT) if error.status == Status.UNIMPLEMENTED else b""
    return HEAD + accept + error_trailers(error)


def http_block(status: int) -> bytes:
    """The only header block of an answer to a request that is not gRPC."""
    return encode([(b":status", b"%d" % status), (b"content-length", b"0")])


def percent_encoded(message: str) -> bytes:
    """A message as `grpc-message` holds it: UTF-8, with all but printable ASCII and the percent sign as %XX."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode(errors="replace")
    )
