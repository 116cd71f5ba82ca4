"""Calls: messages out of DATA frames, a deadline, and one status at the end."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.serve.compress import MIN_BYTES
from edgekit.serve.grpc.codec import Message, encode_response
from edgekit.serve.grpc.route import INFER, Route
from edgekit.serve.grpc.status import (
    HEAD,
    TRAILERS,
    CallError,
    Status,
    call_error,
    error_block,
    error_trailers,
    head_block,
)
from edgekit.serve.h2.connection import Connection
from edgekit.serve.h2.stream import Stream
from edgekit.serve.messages import InferResponse

if TYPE_CHECKING:
    from edgekit.serve.grpc.door import GrpcDoor

PREFIX = struct.Struct(">BI")
"""Before each message: whether it is compressed, and its length."""

IN_FLIGHT = 8
"""Messages of one stream that are worked on at one time."""


class Call(Stream):
    """What unary calls and streams share.

    `answering` is False once the status is decided, or nobody waits for it; `begun` once the answer's head is sent.
    `many`: whether a client may take its time between messages.
    """

    many = False

    __slots__ = ("answering", "begun", "buffer", "route", "serve", "timer")

    def __init__(self, connection: Connection, stream_id: int, send_window: int, route: Route, serve: GrpcDoor) -> None:
        Stream.__init__(self, connection, stream_id, send_window)
        self.route, self.serve = route, serve
        self.buffer: bytearray | None = None
        self.answering, self.begun = True, False
        self.timer: asyncio.TimerHandle | None = None

    def opened(self) -> None:
        """Start the clock, and answer what is refused already."""
        route = self.route
        if route.refusal is not None:
            self.answering = False
            self.connection.output.end(self, route.refusal)
        elif route.timeout_s is not None:
            self.timer = self.serve.loop.call_later(route.timeout_s, self._late)

    def _late(self) -> None:
        self.fail(CallError(Status.DEADLINE_EXCEEDED, f"The call took longer than its {self.route.timeout_s:g} s."))

    def fail(self, error: Exception) -> None:
        """End the call with an error."""
        if not self._stop():
            return
        told = call_error(error)
        if self.begun:
            self.connection.output.end(self, error_trailers(told))
        else:
            self.connection.output.end(self, error_block(told))

    def _stop(self) -> bool:
        """The status is decided. False: it was before."""
        if not self.answering:
            return False
        self.answering = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return True

    def dropped(self) -> None:
        """The client does not wait any more."""
        self._stop()

    def check_time(self, now: float) -> None:
        """A message must come as fast as the limits say."""
        Stream.check_time(self, now)
        limits = self.connection.limits
        came = len(self.buffer or b"")
        begun = came or not self.many
        if self.answering and self.remote_open and begun and now - self.since > limits.body_s + came / limits.body_rate:
            self.fail(CallError(Status.DEADLINE_EXCEEDED, "The message arrives too slowly."))

    def keep(self, data: bytes | memoryview) -> bytearray:
        """More of a message that is not whole yet. Raises CallError: it is, or would be, longer than it may."""
        if self.buffer is None:
            self.buffer = bytearray()
        if not self.buffer:
            self.since = self.connection.heard
        self.buffer += data
        self.hold(len(data))
        if self.serve.buffered > self.serve.limits.buffered_bytes:
            raise CallError(Status.RESOURCE_EXHAUSTED, "The server holds as much as it can.", retry_after_s=1)
        if len(self.buffer) >= PREFIX.size:
            self.check_length(PREFIX.unpack_from(self.buffer)[1])
        return self.buffer

    def check_length(self, size: int) -> None:
        """Raises CallError if a message of `size` bytes is too long."""
        longest = self.serve.limits.message_bytes
        if size > longest:
            raise CallError(
                Status.RESOURCE_EXHAUSTED, f"The message has {size} bytes, this server reads at most {longest}."
            )

    def check_backlog(self) -> None:
        """Raises CallError if the client leaves too many answers unread to be given more."""
        if self.connection.output.backlog > self.serve.limits.backlog_bytes:
            raise CallError(
                Status.RESOURCE_EXHAUSTED, "Too many answers wait to be read on this connection.", retry_after_s=1
            )


class UnaryCall(Call):
    """One message, one answer."""

    __slots__ = ()

    def received(self, data: bytes | memoryview, ended: bool) -> None:
        """A piece of the request; it is acted on once it is whole."""
        if not self.answering:
            return
        try:
            if self.buffer is not None or not ended:
                buffer = self.keep(data)
                if len(buffer) >= PREFIX.size and len(buffer) > PREFIX.size + PREFIX.unpack_from(buffer)[1]:
                    raise InputError("The call carries more than one message.")
                if ended:
                    self._act(buffer)
            else:
                self._act(data)
        except Exception as error:
            self.fail(error)

    def _act(self, data: Message) -> None:
        if len(data) < PREFIX.size:
            raise InputError("The call carries no message.")
        packed, size = PREFIX.unpack_from(data)
        self.check_length(size)
        if len(data) != PREFIX.size + size:
            raise InputError(f"The message says that it has {size} bytes, it has {len(data) - PREFIX.size}.")
        self.check_backlog()
        message = memoryview(data)[PREFIX.size :]
        if packed:
            self.serve.unpack(self, packed, message, self._ask)
        else:
            self._ask(message)

    def _ask(self, message: Message) -> None:
        if not self.answering:
            return
        if self.route.method == INFER:
            self.serve.infer(message, self.answer)
        else:
            parts: list[bytes | memoryview] = [self.serve.answer(self.route.method, message)]
            self._reply(parts, len(parts[0]))

    def answer(self, result: InferResponse | Exception) -> None:
        """What became of the inference."""
        if not self.answering:
            return
        if isinstance(result, Exception):
            self.fail(result)
            return
        try:
            parts, size = encode_response(result)
            self._reply(parts, size)
        except Exception as error:
            self.fail(error)

    def _reply(self, parts: list[bytes | memoryview], size: int) -> None:
        encoding = self.route.encoding
        if encoding and size >= MIN_BYTES:
            self.serve.pack(self, encoding, parts, size, partial(self._send, head_block(encoding), 1))
        else:
            self._send(HEAD, 0, parts, size)

    def _send(self, head: bytes, packed: int, parts: Sequence[bytes | memoryview], size: int) -> None:
        if self._stop():
            self.connection.output.answer(self, head, [PREFIX.pack(packed, size), *parts], PREFIX.size + size, TRAILERS)


class _Slot:
    """One message of a stream: the parts of its answer once they are known, their size, and if they are compressed."""

    __slots__ = ("packed", "parts", "size")

    def __init__(self) -> None:
        self.parts: Sequence[bytes | memoryview] | None = None
        self.packed = self.size = 0


class StreamCall(Call):
    """Messages both ways: each is an inference; answers leave in the order of their requests."""

    many = True

    __slots__ = ("slots", "waiting", "working")

    def __init__(self, connection: Connection, stream_id: int, send_window: int, route: Route, serve: GrpcDoor) -> None:
        Call.__init__(self, connection, stream_id, send_window, route, serve)
        self.waiting: deque[tuple[int, Message]] = deque()
        self.slots: deque[_Slot] = deque()
        self.working = False

    def received(self, data: bytes | memoryview, ended: bool) -> None:
        """A piece of the stream of messages."""
        if not self.answering:
            return
        try:
            self._split(data)
            if ended and self.buffer:
                raise InputError("The last message is cut.")
            self._work()
        except Exception as error:
            self.fail(error)

    def _split(self, data: bytes | memoryview) -> None:
        """Take the whole messages out of what came."""
        buffer = self.keep(data)
        at = 0
        while len(buffer) - at >= PREFIX.size:
            packed, size = PREFIX.unpack_from(buffer, at)
            self.check_length(size)
            end = at + PREFIX.size + size
            if end > len(buffer):
                break
            if not at and end == len(buffer):  # nothing else in there: it need not be copied
                self.waiting.append((packed, memoryview(buffer)[PREFIX.size :]))
                self.buffer = None
                return
            self.waiting.append((packed, bytes(memoryview(buffer)[at + PREFIX.size : end])))
            at = end
        if at:
            self.buffer = buffer[at:]
            self.since = self.connection.heard

    def _work(self) -> None:
        """Start on what waits, as far as the client reads its answers; end when all is done."""
        if self.working:  # an answer came at once: the loop below goes on
            return
        self.working = True
        try:
            while self.waiting and self.answering and not self.backlog and len(self.slots) < IN_FLIGHT:
                self._start_on(*self.waiting.popleft())
        finally:
            self.working = False
        if self.answering and not self.remote_open and not self.waiting and not self.slots and self._stop():
            if self.begun:
                self.connection.output.end(self, TRAILERS)
            else:
                self.connection.output.end(self, HEAD + TRAILERS)
            return
        reading = len(self.waiting) < IN_FLIGHT
        if reading != self.reading:
            self.read_on(reading)

    def _start_on(self, packed: int, message: Message) -> None:
        slot = _Slot()
        self.slots.append(slot)
        ask = partial(self._ask, slot, len(message) + PREFIX.size)
        if packed:
            self.serve.unpack(self, packed, message, ask)
        else:
            ask(message)

    def _ask(self, slot: _Slot, held: int, message: Message) -> None:
        if not self.answering:
            return
        self.hold(-held)
        self.serve.infer(message, partial(self._answer, slot))

    def _answer(self, slot: _Slot, result: InferResponse | Exception) -> None:
        if not self.answering:
            return
        try:
            if isinstance(result, Exception):
                error = call_error(result)
                if self.route.statuses:
                    raise error
                parts, size = self.serve.stream_error(str(error))
            else:
                parts, size = self.serve.stream_answer(*encode_response(result))
            encoding = self.route.encoding
            if encoding and size >= MIN_BYTES:
                self.serve.pack(self, encoding, parts, size, partial(self._fill, slot, 1))
            else:
                self._fill(slot, 0, parts, size)
        except Exception as error:
            self.fail(error)

    def _fill(self, slot: _Slot, packed: int, parts: Sequence[bytes | memoryview], size: int) -> None:
        """An answer is there: send it, and those behind it, unless others before it are still missing."""
        slot.parts, slot.packed, slot.size = parts, packed, size
        output, slots = self.connection.output, self.slots
        if not self.answering:
            return
        if not self.begun:
            self.begun = True
            output.start(self, head_block(self.route.encoding))
        while slots and (ready := slots[0]).parts is not None and self.answering:
            slots.popleft()
            output.send(self, [PREFIX.pack(ready.packed, ready.size), *ready.parts], PREFIX.size + ready.size)
        self._work()

    def drained(self) -> None:
        """The client has read: go on."""
        if self.answering:
            self.serve.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.fail(error)

    def dropped(self) -> None:
        """The client does not wait any more."""
        Call.dropped(self)
        self.waiting.clear()
        self.slots.clear()
