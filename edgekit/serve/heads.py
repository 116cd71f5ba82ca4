"""Request heads that repeat: a steady client's is the same byte for byte, so it is understood once."""

from __future__ import annotations

import time

from edgekit.serve.http_messages import HttpRequest

MAX_HEADS = 256
MAX_HEAD_BYTES = 2048

_CHANGING = frozenset((b"expect", b"transfer-encoding", b"x-request-id"))
"""Headers of requests that have more to them than their bytes, or are not sent twice."""


class Heads:
    """Heads of whole requests that the parser took, by their bytes. What is not known here goes to the parser."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bytes, bytes, dict[bytes, bytes], int]] = {}

    def read(self, data: bytes) -> HttpRequest | None:
        """The request in `data` if that is a known head and exactly its body, where a request may begin."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._known.get(data[:end])
        if known is None:
            return None
        method, target, headers, length = known
        if len(data) - end != length:
            return None
        return HttpRequest(method, target, headers, data[end:], True, False, time.perf_counter_ns())

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
        self._known[data[:end]] = (request.method, request.target, request.headers, length)
