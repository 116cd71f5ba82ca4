"""One HTTP/2 connection: what the client's frames mean (RFC 9113), and what of it a server need not put up with."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from edgekit.serve.h2 import frames as h2
from edgekit.serve.h2.budget import Budget
from edgekit.serve.h2.controls import LEAVING, RESET_COST, Controls
from edgekit.serve.h2.frames import Code, ConnectionFault, StreamFault
from edgekit.serve.h2.headers import HeaderReader
from edgekit.serve.h2.output import Output
from edgekit.serve.h2.owner import Owner
from edgekit.serve.h2.stream import Stream
from edgekit.serve.h2.whole import answered_at_once

LOGGER = logging.getLogger(__name__)

_ASKING = b"are you?"
_LINGER_S = 2.0
_REMEMBERED = 512
_PLAIN = (h2.END_HEADERS, h2.END_HEADERS | h2.END_STREAM)
_TURN = 32  # calls of one connection that are begun before others have their turn
_VIEW_BYTES = 1024  # pieces of a body above this are passed on without a copy


class Connection(asyncio.Protocol):
    """One client.

    `heard` is when it last sent something, by the loop's clock. `settled`: its first SETTINGS came; `acknowledged`: it
    has ours. `last` is the highest stream that it opened, `window` what it may still send. `turn`: how many calls are
    begun before others have their turn; `answered`: how many were answered, `owed`: how many will be soon, without a
    stream. `leaving_at`: when it was told that we leave; `refusing`: it has heard, or leaves itself; no more is taken.
    """

    def __init__(self, door: Owner) -> None:
        self.door, self.limits = door, door.limits
        self.streams: dict[int, Stream] = {}
        self.heard = self._since = door.loop.time()
        self._transport: asyncio.Transport | None = None
        self.reader = HeaderReader(max_list_bytes=door.limits.header_bytes)
        self._rest = b""
        self.turn = _TURN
        self._preface = self.settled = self.acknowledged = False
        self.window = h2.DEFAULT_WINDOW
        self.last = 0
        self._block: tuple[int, int, bytearray, int] | None = None
        self._gone: dict[int, None] = {}
        self._budget = Budget(door.limits.noise, door.limits.noise_rate, self._since)
        self.answered = self.owed = 0
        self._asked = self.leaving_at = 0.0
        self.refusing = self._ended = False
        self._controls = Controls(self)

    # what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)
        self.output = Output(self._transport, self.door, self._finished)
        door, limits = self.door, self.limits
        full = len(door.connections) >= limits.connections
        door.connections.add(self)
        grown = limits.window_bytes - self.window
        self.window = limits.window_bytes
        self.output.write(h2.settings(limits.announced()) + (h2.window_update(0, grown) if grown > 0 else b""))
        if full or door.draining:
            self._fail(ConnectionFault(Code.REFUSED_STREAM, "the server has as many connections as it takes"))

    def data_received(self, data: bytes) -> None:
        """Bytes came: act on the frames that are complete, and let all that they lead to leave in one write."""
        self.heard = self.door.loop.time()
        if self._ended:
            return
        if self._rest:
            data = self._rest + data
        self.turn = _TURN
        self.output.corked = True
        try:
            self._rest = data[self._frames(data) :]
        except ConnectionFault as fault:
            self._fail(fault)
        except Exception:
            LOGGER.exception("a connection failed")
            self._fail(ConnectionFault(Code.INTERNAL_ERROR, "the server failed on this connection"))
        finally:
            self.output.corked = False
            self.output.flush()
        self.leave_if_done()
        if not self.turn and self._transport is not None and not self._ended:
            self._transport.pause_reading()
            self.door.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """The others had their turn: on with what is left."""
        if self._transport is not None and not self._transport.is_closing() and not self._ended:
            if not self.output.paused:
                self._transport.resume_reading()
            self.data_received(b"")

    def eof_received(self) -> bool:
        """The client has gone, as far as gRPC is concerned."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and with it what it asked."""
        self.door.connections.discard(self)
        self._transport = None
        self._drop_streams()

    def pause_writing(self) -> None:
        """The client does not read: nothing more is written, and nothing more read that would have to be answered."""
        self.output.paused, self._since = True, self.door.loop.time()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.output.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.output.pump()

    @property
    def lost(self) -> bool:
        """Whether nothing can be answered any more."""
        return self._ended or self._transport is None

    # frames

    def _frames(self, data: bytes) -> int:
        """Act on the whole frames in `data`; returns how many bytes they are."""
        at, end, longest = 0, len(data), self.limits.frame_bytes
        if not self._preface:
            if not data.startswith(h2.PREFACE):
                if h2.PREFACE.startswith(data):
                    return 0
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this port speaks HTTP/2 (gRPC) only")
            self._preface, at = True, len(h2.PREFACE)
        unpack = h2.unpack_head
        while end - at >= 9 and self.turn:
            high, low, kind, flags, number = unpack(data, at)
            length, number = high << 8 | low, number & h2.MAX_STREAM_ID
            if length > longest:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame has {length} bytes, at most {longest} are read")
            start, stop = at + 9, at + 9 + length
            if stop > end:
                break
            at = stop
            if self._block is not None and (kind != h2.CONTINUATION or number != self._block[0]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block is not continued")
            if not self.settled and kind != h2.SETTINGS:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            try:
                if kind == h2.DATA:
                    self._on_data(number, flags, data, start, stop)
                elif kind == h2.HEADERS and flags in _PLAIN:
                    at = (flags == h2.END_HEADERS and answered_at_once(self, number, data, start, stop)) or stop
                    if at == stop:
                        self._on_block(number, data[start:stop], flags & h2.END_STREAM)
                elif kind == h2.HEADERS:
                    self._on_headers(number, flags, data[start:stop])
                elif kind == h2.CONTINUATION:
                    self._on_continuation(flags, data[start:stop])
                else:
                    self._controls.act(kind, number, flags, data[start:stop])
            except StreamFault as fault:
                self.cost(RESET_COST)
                self.reset(fault.stream, fault.code)
        return at

    def take(self, length: int) -> None:
        """Count bytes of DATA against the connection's window, and open it again once half of it is used."""
        full = self.limits.window_bytes
        self.window -= length
        if self.window < full >> 1:
            if self.window < 0:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
            self.output.write(h2.window_update(0, full - self.window))
            self.window = full

    def _on_data(self, number: int, flags: int, data: bytes, start: int, stop: int) -> None:
        length = stop - start
        self.take(length)
        if flags & h2.PADDED:
            if not length or data[start] >= length:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "padding is longer than its frame")
            stop -= data[start]
            start += 1
        ended = flags & h2.END_STREAM
        if stop - start < 16 and not ended:
            self.cost(1)
        stream = self.streams.get(number)
        if stream is None:
            self._closed_stream(number)
            return
        if not stream.remote_open:
            raise StreamFault(number, Code.STREAM_CLOSED)
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise StreamFault(number, Code.FLOW_CONTROL_ERROR)
        if ended:
            stream.remote_open = False
        elif stream.reading:
            self.open_window(stream)
        piece = memoryview(data)[start:stop] if stop - start > _VIEW_BYTES else data[start:stop]
        stream.received(piece, not stream.remote_open)

    def open_window(self, stream: Stream) -> None:
        """Let the client send more on `stream`, once half of its window is used."""
        full = self.limits.stream_window_bytes
        if stream.receive_window < full >> 1 and stream.remote_open:
            self.output.write(h2.window_update(stream.id, full - stream.receive_window))
            stream.receive_window = full

    def _closed_stream(self, number: int) -> None:
        """A frame came for a stream that is not open: late if we ended it, else a fault."""
        if number > self.last or not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"stream {number} is not open")
        self.cost(1)
        if number not in self._gone:
            raise StreamFault(number, Code.STREAM_CLOSED)

    def _on_headers(self, number: int, flags: int, block: bytes) -> None:
        block = h2.block_of(flags, block)
        if flags & h2.END_HEADERS:
            self._on_block(number, block, flags & h2.END_STREAM)
        else:
            self._block = number, flags, bytearray(block), 0

    def _on_continuation(self, flags: int, more: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION follows no header block")
        number, first, block, count = self._block
        block += more
        if count >= self.limits.continuations or len(block) > self.limits.header_bytes:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header block is too long")
        self.cost(1)
        self._block = number, first, block, count + 1
        if flags & h2.END_HEADERS:
            self._block = None
            self._on_block(number, bytes(block), first & h2.END_STREAM)

    def _on_block(self, number: int, block: bytes, ended: int) -> None:
        # decoded also where it is of no use: it may change the table
        head = self.reader.known.get(block) or self.reader.read(block)
        stream = self.streams.get(number)
        if stream is not None:
            if not stream.remote_open:
                raise StreamFault(number, Code.STREAM_CLOSED)
            if not ended or not head.trailer:
                raise StreamFault(number, Code.PROTOCOL_ERROR)
            stream.remote_open = False
            stream.received(b"", True)
            return
        if not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a client cannot open stream {number}")
        if number <= self.last:
            if number not in self._gone:
                raise ConnectionFault(Code.STREAM_CLOSED, f"stream {number} was used before")
            self.cost(1)
            return
        self.last = number
        self.turn -= 1
        if len(self.streams) >= self.limits.streams or self.refusing:
            raise StreamFault(number, Code.REFUSED_STREAM)
        if head.fault:
            raise StreamFault(number, Code.PROTOCOL_ERROR)
        self.streams[number] = stream = self.door.new_stream(self, number, self.output.stream_window, head)
        if ended:
            stream.remote_open = False
        stream.opened()

    def cost(self, units: int) -> None:
        """Count work that carries nothing. Raises ConnectionFault: too much of it."""
        self._budget.spend(units, now=self.heard, done=self.answered + self.output.data_frames)

    # streams that end

    def reset(self, number: int, code: Code) -> None:
        """End a stream without an answer."""
        self.output.write(h2.rst_stream(number, code))
        self._remember(number)
        stream = self.streams.get(number)
        if stream is not None:
            self.forget(stream)
            stream.dropped()

    def _finished(self, stream: Stream) -> None:
        """The answer is written."""
        self.answered += 1
        if stream.remote_open:  # it need not send the rest
            self.output.write(h2.rst_stream(stream.id, Code.NO_ERROR))
            self._remember(stream.id)
        if stream.held or self.refusing:
            self.forget(stream)
        else:
            del self.streams[stream.id]

    def forget(self, stream: Stream) -> None:
        """Let go of a stream and of what it holds."""
        if stream.backlog:
            self.output.drop(stream)
        if stream.held:
            stream.hold(-stream.held)
        self.streams.pop(stream.id, None)
        self.leave_if_done()

    def _remember(self, number: int) -> None:
        """What the client sent on this stream before it heard of its end is passed over."""
        self._gone[number] = None
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def _drop_streams(self) -> None:
        for stream in list(self.streams.values()):
            self.forget(stream)
            stream.dropped()

    # the connection's end

    def check_time(self, now: float) -> None:
        """Ask, refuse or close if the client has taken longer than it may; `now` is the loop's time."""
        limits, transport = self.limits, self._transport
        if transport is None:
            return
        if self._ended:
            if now - self._since > _LINGER_S:
                transport.abort()
        elif self.output.paused:
            if now - self._since > limits.write_s:
                transport.abort()
        elif not self.acknowledged and now - self._since > limits.head_s:
            self._fail(ConnectionFault(Code.SETTINGS_TIMEOUT, "the connection was not opened in time"))
        elif self.leaving_at and now - self.leaving_at > 1.0 and not self.refusing:
            self.refuse_more()
        elif self._asked > self.heard:
            if now - self._asked > limits.pong_s:
                transport.abort()
        elif not self.streams and now - self.heard > limits.idle_s:
            self.refuse_more()
        elif now - self.heard > limits.ping_s and not self._asked > self.heard:
            self._asked = now
            self.output.write(h2.frame(h2.PING, 0, 0, _ASKING))
        for stream in list(self.streams.values()):
            stream.check_time(now)

    def drain(self) -> None:
        """Take no more calls, answer those that are open, and then close."""
        if self._transport is None or self._ended or self.leaving_at:
            return
        if not self.settled:
            self._close()
            return
        self.leaving_at = self.door.loop.time()
        self.output.write(h2.goaway(h2.MAX_STREAM_ID, Code.NO_ERROR) + h2.frame(h2.PING, 0, 0, LEAVING))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def refuse_more(self) -> None:
        """The client has heard that we leave: what it opens from now on is not taken."""
        if not self.refusing:
            self.refusing = True
            self.output.write(h2.goaway(self.last, Code.NO_ERROR))
        self.leave_if_done()

    def leave_if_done(self) -> None:
        """Close a connection that is to end, once nothing is asked any more."""
        if self.refusing and not self.streams and not self.owed and not self.output.corked:
            self._close()

    def _fail(self, fault: ConnectionFault) -> None:
        """Say why, and close; what still comes is read and discarded for a while, so that the client sees it."""
        if self._ended:
            return
        self._ended, self._rest = True, b""
        self._since = self.door.loop.time()
        self._drop_streams()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self.output.write(h2.goaway(self.last, fault.code, str(fault)))
        self.output.flush()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _close(self) -> None:
        self._ended = True
        if self._transport is not None:
            self.output.flush()
            self._transport.close()
