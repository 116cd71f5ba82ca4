"""The sending side of a connection: answers as frames, within the client's windows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from edgekit.serve.h2.frames import (
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    Code,
    ConnectionFault,
    StreamFault,
    frame_head,
)
from edgekit.serve.h2.headers import EMPTY_TABLE, TABLE_BYTES
from edgekit.serve.h2.stream import Stream

_FLUSH_BYTES = 64 << 10
_JOIN_BYTES = 32 << 10  # below this, one copy is quicker than a list of buffers


@lru_cache(maxsize=256)
def _opening(head: int, body: int, trailers: int) -> tuple[bytes, bytes, bytes]:
    """How the three frames of an answer begin, up to their stream, by the bytes in each."""
    return (
        frame_head(head, HEADERS, END_HEADERS, 0)[:5],
        frame_head(body, DATA, 0, 0)[:5],
        frame_head(trailers, HEADERS, END_HEADERS | END_STREAM, 0)[:5],
    )


class Shared(Protocol):
    """What all connections of a door count together."""

    buffered: int


class Output:
    """Frames on their way to one client.

    While `corked`, frames are collected and leave together at `flush`. `finished` hears of a stream whose last frame
    is written. `data_frames` counts DATA frames sent.
    """

    def __init__(self, transport: asyncio.Transport, shared: Shared, finished: Callable[[Stream], None]) -> None:
        self._transport, self._shared, self._finished = transport, shared, finished
        self._pieces: list[bytes | memoryview] = []
        self._ready: dict[int, Stream] = {}
        self._prefix = b""
        self.corked = self.paused = False
        self.window = self.stream_window = DEFAULT_WINDOW
        self.frame_bytes = DEFAULT_FRAME
        self.backlog = self.data_frames = 0

    def write(self, data: bytes) -> None:
        """A whole frame."""
        self._pieces.append(data)
        if not self.corked:
            self.flush()

    def flush(self) -> None:
        """Hand what was collected to the transport."""
        pieces = self._pieces
        if not pieces:
            return
        self._pieces = []
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        elif sum(map(len, pieces)) < _JOIN_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    # answers

    def answer(
        self, stream: Stream, head: bytes, parts: Sequence[bytes | memoryview], size: int, trailers: bytes
    ) -> None:
        """A whole answer: a header block, a body of `size` bytes in `parts`, and a block of trailers."""
        if size > stream.send_window or not self.whole(stream.id, head, parts, size, trailers):
            self.start(stream, head)
            self.send(stream, parts, size)
            self.end(stream, trailers)
            return
        self._finished(stream)
        if not self.corked:
            self.flush()

    @property
    def room(self) -> int:
        """Bytes of the longest body that `whole` takes now."""
        return min(self.window, self.stream_window, self.frame_bytes)

    @property
    def plain(self) -> bool:
        """Whether nothing has to go before the next header block."""
        return not self._prefix

    def whole(self, stream: int, head: bytes, parts: Sequence[bytes | memoryview], size: int, trailers: bytes) -> bool:
        """A whole answer on a new stream, for the next `flush`; False if it is more than can be sent at once."""
        if size > self.room or self._prefix:
            return False
        number = stream.to_bytes(4, "big")
        self.window -= size
        self.data_frames += 1
        start, data, end = _opening(len(head), size, len(trailers))
        self._pieces.append(b"".join((start, number, head, data, number, *parts, end, number, trailers)))
        return True

    def start(self, stream: Stream, head: bytes) -> None:
        """The header block of an answer."""
        self._block(stream, head, END_HEADERS)

    def send(self, stream: Stream, parts: Sequence[bytes | memoryview], size: int) -> None:
        """More of the body; what the client's windows do not take yet waits."""
        if stream.pending is None:
            stream.pending = deque()
        if not stream.backlog:
            stream.since = stream.connection.heard
        stream.pending.extend(view for part in parts if (view := memoryview(part)))
        stream.backlog += size
        self.backlog += size
        self._shared.buffered += size
        if stream.send_window > 0:
            self._ready[stream.id] = stream
        self.pump()

    def end(self, stream: Stream, trailers: bytes) -> None:
        """The block that ends the answer, once all that was sent before has left."""
        if stream.backlog:
            stream.trailers = trailers
        else:
            self._block(stream, trailers, END_HEADERS | END_STREAM)
            self._finished(stream)

    def drop(self, stream: Stream) -> None:
        """Forget what waits on `stream`."""
        self._ready.pop(stream.id, None)
        self._let_go(stream, stream.backlog)
        stream.pending = None

    def pump(self) -> None:
        """Send what the windows take: a frame a stream, in turn."""
        ready, size = self._ready, 0
        while ready and self.window > 0 and not self.paused:
            number = next(iter(ready))
            stream = ready.pop(number)
            size += self._send_frame(stream)
            if stream.backlog and stream.send_window > 0:
                ready[number] = stream
            if size > _FLUSH_BYTES:
                self.flush()
                size = 0
        if not self.corked:
            self.flush()

    def _send_frame(self, stream: Stream) -> int:
        size = min(self.frame_bytes, self.window, stream.send_window, stream.backlog)
        self._pieces.append(frame_head(size, DATA, 0, stream.id))
        left, pending = size, stream.pending
        assert pending is not None
        while left:
            view = pending.popleft()
            if len(view) > left:
                pending.appendleft(view[left:])
                view = view[:left]
            self._pieces.append(view)
            left -= len(view)
        self.window -= size
        self.data_frames += 1
        stream.send_window -= size
        stream.since = stream.connection.heard
        self._let_go(stream, size)
        if not stream.backlog:
            if stream.trailers is None:
                stream.drained()
            else:
                self.end(stream, stream.trailers)
        return size

    def _let_go(self, stream: Stream, size: int) -> None:
        stream.backlog -= size
        self.backlog -= size
        self._shared.buffered -= size

    def _block(self, stream: Stream, block: bytes, flags: int) -> None:
        block, self._prefix = self._prefix + block, b""
        self.write(frame_head(len(block), HEADERS, flags, stream.id) + block)

    # what the client allows

    def widen(self, increment: int) -> None:
        """The connection's window grows. Raises ConnectionFault: beyond what a window may be."""
        self.window += increment
        if self.window > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window is too large")
        self.pump()

    def widen_stream(self, stream: Stream, increment: int) -> None:
        """One stream's window grows. Raises StreamFault: beyond what a window may be."""
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW:
            raise StreamFault(stream.id, Code.FLOW_CONTROL_ERROR)
        if stream.backlog and stream.send_window > 0:
            self._ready[stream.id] = stream
            self.pump()

    def set_stream_window(self, size: int, streams: Sequence[Stream]) -> None:
        """Streams start with a window of `size`; those that are open change by the difference.

        Raises:
            ConnectionFault: a window would be beyond what it may be.
        """
        change, self.stream_window = size - self.stream_window, size
        for stream in streams:
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a stream's window is too large")
            if stream.send_window <= 0:
                self._ready.pop(stream.id, None)
            elif stream.backlog:
                self._ready[stream.id] = stream
        self.pump()

    def set_table_size(self, size: int) -> None:
        """The client's decoder has a table of `size` bytes. Ours stays empty, which it must be told if it shrinks."""
        if size < TABLE_BYTES:
            self._prefix = EMPTY_TABLE
