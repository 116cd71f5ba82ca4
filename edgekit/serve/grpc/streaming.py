"""ModelStreamInfer: many inferences in one call, answered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.serve.app import Cancel
from edgekit.serve.compress import MIN_BYTES
from edgekit.serve.grpc.call import Call
from edgekit.serve.grpc.codec import PREFIX, Message, encode_response
from edgekit.serve.grpc.route import Route
from edgekit.serve.grpc.status import HEAD, TRAILERS, call_error, head_block
from edgekit.serve.h2.connection import Connection
from edgekit.serve.messages import InferResponse

if TYPE_CHECKING:
    from edgekit.serve.grpc.door import GrpcDoor

IN_FLIGHT = 8
"""Messages of one stream that are worked on at one time."""

TURN = 64
"""Messages of one stream that are worked on before others have their turn."""


class _Slot:
    """One message of a stream: the parts of its answer once they are known, their size, and if they are compressed.

    `cancel` gives up the inference while it waits.
    """

    __slots__ = ("cancel", "packed", "parts", "size")

    def __init__(self) -> None:
        self.cancel: Cancel | None = None
        self.parts: Sequence[bytes | memoryview] | None = None
        self.packed = self.size = 0


class StreamCall(Call):
    """Messages both ways: each is an inference; answers leave in the order of their requests.

    What came stays bytes in `buffer`, read up to `at`, until it is worked on: small messages would take many times
    their bytes.
    """

    many = True
    working = scheduled = False
    at = 0

    def __init__(self, connection: Connection, stream_id: int, send_window: int, route: Route, serve: GrpcDoor) -> None:
        Call.__init__(self, connection, stream_id, send_window, route, serve)
        self.slots: deque[_Slot] = deque()

    def received(self, data: bytes | memoryview, ended: bool) -> None:
        """A piece of the stream of messages."""
        if not self.answering:
            return
        try:
            self.keep(data)
            self._work()
        except Exception as error:
            self.fail(error)

    def _next(self) -> tuple[int, Message] | None:
        """The next message if it is whole: whether it is compressed, and its bytes."""
        buffer, at = self.buffer, self.at
        if buffer is None or len(buffer) - at < PREFIX.size:
            return None
        packed, size = PREFIX.unpack_from(buffer, at)
        self.check_length(size)
        start, end = at + PREFIX.size, at + PREFIX.size + size
        if end > len(buffer):
            if at:
                del buffer[:at]
                self.at = 0
            return None
        self.since = self.connection.heard
        if end < len(buffer):
            self.at = end
            return packed, bytes(memoryview(buffer)[start:end])
        self.buffer, self.at = None, 0
        return packed, memoryview(buffer)[start:]

    def _work(self) -> None:
        """Start on what came, as far as the client reads its answers; end when all is done."""
        if self.working:  # an answer came at once: the loop below goes on
            return
        self.working, free = True, False
        try:
            for _ in range(TURN):
                free = self._free()
                message = self._next() if free else None
                if message is None:
                    break
                self._start_on(*message)
            else:
                self._soon()
                free = False
        finally:
            self.working = False
        if free and not self.remote_open and not self.slots:
            if self.buffer:
                raise InputError("The last message is cut.")
            if self._stop():
                self.connection.output.end(self, TRAILERS if self.begun else HEAD + TRAILERS)
        elif self.answering and free != self.reading:
            self.read_on(free)

    def _free(self) -> bool:
        """Whether one more message may be worked on."""
        return self.answering and not self.backlog and len(self.slots) < IN_FLIGHT

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
        slot.cancel = self.serve.read_and_infer(message, partial(self._answer, slot), self.traceparent)

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
        slot.parts, slot.packed, slot.size, slot.cancel = parts, packed, size, None
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
            self._soon()

    def _soon(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.serve.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self.scheduled = False
        try:
            self._work()
        except Exception as error:
            self.fail(error)

    def give_up(self) -> None:
        """Nobody waits for the inferences any more."""
        for slot in self.slots:
            if slot.cancel is not None:
                slot.cancel()
        self.slots.clear()
