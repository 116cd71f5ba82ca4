"""The HTTP/1.1 door: bytes of many connections to requests and back, within limits.

Parsing is httptools' (llhttp, strict); what it lets through and a server should not is refused here. Requests that a
client pipelines are answered in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import cast

from edgekit._lazy import require
from edgekit.serve.heads import SINGLE, USED, Heads, head_fault
from edgekit.serve.http_messages import Handler, HttpRequest, HttpResponse, KnownHead, error_response
from edgekit.serve.limits import Limits
from edgekit.serve.messages import RequestError

LOGGER = logging.getLogger(__name__)

GONE_S = 0.25
"""A client that closed its sending side is taken for gone if its request still waits for its turn after so long."""

_IDLE, _HEAD, _BODY = range(3)
_TURN = 32  # requests of one connection that are answered before others have their turn
_JOIN_BYTES = 64 << 10  # below this, one copy is quicker than a list of buffers
_JOINED = HttpRequest(b"POST", b"", {})  # stands for one that is answered as this turn of the loop ends


class Door:
    """What the connections of one server share. `handle` answers a request."""

    def __init__(self, handle: Handler, *, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        parser = require("httptools", why="serve over HTTP")
        self.handle = handle
        self.limits = limits
        self.loop = loop
        self.new_parser = parser.HttpRequestParser
        self.parser_error, self.upgrade = parser.HttpParserError, parser.HttpParserUpgrade
        self.heads = Heads()
        self.connections: set[Connection] = set()
        self.buffered = 0
        self.draining = False

    def __call__(self) -> Connection:
        """A protocol for one more connection."""
        return Connection(self)

    def sweep(self) -> None:
        """Let go of clients that take too long; to be called about once a second."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check_time(now)

    def drain(self) -> None:
        """Answer what was asked, and then close every connection."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in list(self.connections):
            connection.abort()

    def close(self) -> None:
        """Nothing is left to let go of."""


class Connection(asyncio.Protocol):
    """One client: parses what it sends, hands requests on one after the other, writes the answers."""

    def __init__(self, door: Door) -> None:
        self._door, self._limits = door, door.limits
        self._transport: asyncio.Transport | None = None
        self._parser = door.new_parser(self)
        self._state, self._since = _IDLE, door.loop.time()
        self._head_bytes = self._header_count = self._body_bytes = 0
        self._begun = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._ready: deque[HttpRequest] = deque()
        self._answering: HttpRequest | None = None
        self._refusal: HttpResponse | None = None
        self._continue = self._pumping = self._eof = False
        self._lingering = self._write_paused = self._read_paused = False
        self._send_joined = partial(self._respond, _JOINED)

    # what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)
        full = len(self._door.connections) >= self._limits.connections
        self._door.connections.add(self)
        if full:
            fault = RequestError(503, "The server has as many connections as it takes. Try again.", retry_after_s=1)
            self._write(error_response(fault), close=True)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes came: parse them and answer what is complete."""
        if self._refusal is not None or self._lingering:
            return
        between = self._state == _IDLE and self._answering is None and not self._ready
        known = self._door.heads.find(data) if between else None
        if known is not None:
            self._take(known, data)
            return
        self._begun = False
        rest: bytes | memoryview = data
        while rest:
            rest = self._feed(rest)
        if between and len(self._ready) == 1 and self._state == _IDLE and self._refusal is None:
            self._door.heads.learn(data, self._ready[0])
        if self._state == _HEAD and self._refusal is None:
            self._head_bytes += 0 if self._begun else len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(RequestError(431, f"The request's head is longer than {self._limits.head_bytes} bytes."))
        self._pump()

    def _take(self, known: KnownHead, data: bytes) -> None:
        """Answer a request whose head is known: the short way if there is one."""
        short = None if self._write_paused or self._door.draining else known.repeating
        if short is not None and short.joins:
            self._answering = _JOINED
            if short.join(data, known.end, self._send_joined):
                return
            self._answering = None
        answer = None if short is None else short.now(data, known.end)
        if answer is not None and self._transport is not None:
            if isinstance(answer, bytes):
                self._transport.write(answer)
            else:
                self._write(answer, close=False)
            self._since = self._door.loop.time()
            return
        request = known.request(data)
        if short is not None:
            self._answering = request
            if short.later(request, data, partial(self._respond, request)):
                return
            self._answering, known.repeating = None, None
            known.misses += short.holds
        self._ready.append(request)
        self._pump()

    def _feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """Parse `data`; what is returned is still to be parsed."""
        try:
            self._parser.feed_data(data)
        except self._door.upgrade as stop:  # an offer of another protocol, which HTTP/1.1 lets us pass over
            self._parser = self._door.new_parser(self)
            return memoryview(data)[stop.args[0] :]
        except self._door.parser_error as error:
            closing = self._ready and not self._ready[-1].keep_alive  # what follows the last request is not read
            if self._refusal is None and not closing:
                self._refuse(RequestError(400, f"The request is not valid HTTP: {error}."))
        return b""

    def eof_received(self) -> bool:
        """The client has sent all it will; it still gets its answers, unless it would wait long for them.

        A client that is gone and one that only closed its sending side look the same from here.
        """
        self._eof = True
        if self._answering is not None:
            self._door.loop.call_later(GONE_S, self._give_up)
        return bool(self._ready or self._answering is not None) and not self._lingering

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and with it what it asked."""
        self._door.connections.discard(self)
        self._give_up()
        self._transport = self._answering = None
        self._ready.clear()
        self._drop_body()

    def pause_writing(self) -> None:
        """The client does not read its answers: no more are made."""
        self._write_paused, self._since = True, self._door.loop.time()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_paused, self._since = False, self._door.loop.time()
        self._pump()

    # what the parser calls; raising _Stop ends parsing, the refusal says why

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._state, self._since = _HEAD, self._door.loop.time()
        self._begun = True
        self._head_bytes = self._header_count = 0
        self._target, self._headers = b"", {}

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            self._stop(414, f"The request target is longer than {self._limits.target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or a trailer after a chunked body, which is counted and not used."""
        self._header_count += 1
        self._head_bytes += len(name) + len(value)
        limits = self._limits
        if self._header_count > limits.headers or self._head_bytes > limits.head_bytes:
            self._stop(431, f"More than {limits.headers} header lines or {limits.head_bytes} bytes of them.")
        if self._state != _HEAD:
            return
        key = name.lower()
        if key in USED:
            if key in self._headers:
                if key in SINGLE:
                    self._stop(400, f"Header {name.decode('latin-1')} is given twice.")
                value = self._headers[key] + b"," + value
            self._headers[key] = value

    def on_headers_complete(self) -> None:
        """The head is whole: refuse what should not be read on."""
        version = self._parser.get_http_version()
        fault = head_fault(version, self._headers, self._limits)
        if fault is not None:
            self._refuse(fault)
            raise _Stop
        self._continue = b"expect" in self._headers and version == "1.1"
        self._state = _BODY

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._chunks.append(body)
        self._body_bytes += len(body)
        self._door.buffered += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._stop(413, f"The body is longer than {self._limits.body_bytes} bytes, the most this server reads.")
        if self._door.buffered > self._limits.buffered_bytes:
            self._refuse(RequestError(503, "The server holds as many unfinished requests as it can.", retry_after_s=1))
            raise _Stop

    def on_message_complete(self) -> None:
        """A whole request."""
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        parser = self._parser
        self._ready.append(
            HttpRequest(
                parser.get_method(),
                self._target,
                self._headers,
                body,
                parser.should_keep_alive(),
                parser.get_http_version() == "1.0",
                time.perf_counter_ns(),
            )
        )
        self._drop_body()
        self._state, self._continue = _IDLE, False

    def _give_up(self) -> None:
        """The client is gone: what it asked need not be run, if it still waits."""
        if self._answering is not None and self._answering.cancel is not None and self._answering.cancel():
            self.abort()

    # answering

    def _pump(self) -> None:
        """Hand on what waits, as far as answers come at once."""
        if self._pumping or self._transport is None:
            return
        self._pumping, turn = True, _TURN
        try:
            while turn and self._ready and self._answering is None and not self._write_paused and not self._lingering:
                turn -= 1
                request = self._answering = self._ready.popleft()
                self._door.handle(request, partial(self._respond, request))
        finally:
            self._pumping = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        waiting = len(self._ready)
        if not turn and waiting and self._answering is None:
            self._door.loop.call_soon(self._pump)
        if self._answering is None and not waiting:
            if self._refusal is not None and not self._lingering:
                self._write(self._refusal, close=True)
                self._linger()
            elif self._eof:
                transport.close()
            elif self._continue:
                self._continue = False
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._read_paused != (waiting >= self._limits.pipelined):
            self._read_paused = not self._read_paused
            (transport.pause_reading if self._read_paused else transport.resume_reading)()

    def _respond(self, request: HttpRequest, answer: HttpResponse | bytes) -> None:
        if self._answering is not request:  # answered already, or the client left
            return
        self._answering = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        close = not request.keep_alive or self._door.draining
        if isinstance(answer, bytes):
            transport.write(answer)
        else:
            self._write(answer, close=close, head=request.method == b"HEAD", old=request.old)
        self._since = self._door.loop.time()
        if close:
            self._ready.clear()
            transport.close()
        elif not self._pumping:
            self._pump()

    def _write(self, response: HttpResponse, *, close: bool, head: bool = False, old: bool = False) -> None:
        assert self._transport is not None
        parts = response.parts
        size = sum(map(len, parts))
        first = response.head(
            size, b"Connection: close\r\n" if close else b"Connection: keep-alive\r\n" if old else b""
        )
        if head:
            self._transport.write(first)
        elif size < _JOIN_BYTES:
            self._transport.write(b"".join((first, *parts)))
        else:
            self._transport.writelines([first, *parts])

    # ending

    def check_time(self, now: float) -> None:
        """Refuse or close if the client has taken longer than it may; `now` is the loop's time."""
        limits, waited = self._limits, now - self._since
        if self._transport is None:
            return
        if self._lingering:
            if waited > limits.linger_s:
                self.abort()
        elif self._write_paused:
            if waited > limits.write_s:
                self.abort()
        elif self._answering is not None or self._ready:
            return
        elif self._state == _HEAD and waited > limits.head_s:
            self._refuse(RequestError(408, f"The request's head did not arrive within {limits.head_s:g} s."))
            self._pump()
        elif self._state == _BODY and waited > limits.body_s + self._body_bytes / limits.body_rate:
            self._refuse(RequestError(408, "The request's body arrives too slowly."))
            self._pump()
        elif self._state == _IDLE and waited > limits.idle_s:
            self._transport.close()

    def drain(self) -> None:
        """Close once nothing is asked any more."""
        if self._transport is not None and self._state == _IDLE and self._answering is None and not self._ready:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _linger(self) -> None:
        assert self._transport is not None
        self._lingering, self._since = True, self._door.loop.time()
        self._drop_body()
        if self._eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()

    def _refuse(self, fault: RequestError) -> None:
        self._refusal = error_response(fault)

    def _stop(self, status: int, message: str) -> None:
        self._refuse(RequestError(status, message))
        raise _Stop

    def _drop_body(self) -> None:
        self._door.buffered -= self._body_bytes
        self._chunks, self._body_bytes = [], 0


class _Stop(Exception):  # noqa: N818 - not an error: it ends the parser's loop
    """Raised through the parser once a refusal is decided."""
