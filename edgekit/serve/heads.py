"""Heads of requests: what is used of them, what is refused, and those that repeat.

A steady client's head is the same byte for byte, so it is understood once.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.serve.http_messages import HttpRequest, KnownHead
from edgekit.serve.limits import Limits
from edgekit.serve.messages import RequestError

SINGLE = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
    )
)
"""Headers that may be given once only."""
USED = SINGLE | {b"accept-encoding", b"content-type", b"origin", b"traceparent", b"x-request-id"}
"""Headers that are kept."""

MAX_HEADS = 256
MAX_HEAD_BYTES = 2048

_CHANGING = frozenset((b"expect", b"transfer-encoding", b"x-request-id"))
"""Headers of requests that have more to them than their bytes, or are not sent twice."""


def head_fault(version: str, headers: Mapping[bytes, bytes], limits: Limits) -> RequestError | None:
    """Why a request with these headers (those in `USED`) is not read on; None if it is."""
    if version not in ("1.1", "1.0"):
        return RequestError(400, f"HTTP version {version} is not spoken here; expected 1.1 or 1.0.")
    if version == "1.1" and b"host" not in headers:
        return RequestError(400, "Header Host is missing, which HTTP/1.1 needs.")
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        return RequestError(400, "Transfer-Encoding must be chunked, and that in HTTP/1.1.")
    length = headers.get(b"content-length", b"0")
    if coding is not None and b"content-length" in headers:
        return RequestError(400, "Content-Length and Transfer-Encoding are given together.")
    if not length.isdigit():
        return RequestError(400, "Content-Length is not a number of bytes.")
    if int(length) > limits.body_bytes:  # the parser has refused what is beyond 64 bits
        return RequestError(413, f"The body has {int(length)} bytes, this server reads at most {limits.body_bytes}.")
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return RequestError(417, "Header Expect may only be 100-continue.")
    return None


class Heads:
    """Heads of whole requests that the parser took, by their bytes. What is not known here goes to the parser."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> KnownHead | None:
        """The head of `data` if it is known and exactly its body follows, where a request may begin."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._known.get(data[:end])
        return known if known is not None and len(data) - end == known.length else None

    def learn(self, data: bytes, request: HttpRequest) -> None:
        """Remember the head of `request`, which the parser made of `data`, and of it all."""
        end = data.find(b"\r\n\r\n") + 4
        length = len(request.body)
        if end > MAX_HEAD_BYTES or len(data) - end != length or b"content-length" not in request.headers:
            return
        if request.old or not request.keep_alive or not _CHANGING.isdisjoint(request.headers):
            return
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[data[:end]] = KnownHead(request.method, request.target, request.headers, end, length)
