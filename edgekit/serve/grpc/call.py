"""Calls: messages out of DATA frames, a deadline, and one status at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.serve.app import Cancel
from edgekit.serve.compress import MIN_BYTES
from edgekit.serve.grpc.codec import PREFIX, Message, encode_framed, encode_response
from edgekit.serve.grpc.route import INFER, Later, Route
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
from edgekit.serve.messages import InferRequest, InferResponse
from edgekit.tensors import Tensors

if TYPE_CHECKING:
    from edgekit.serve.grpc.door import GrpcDoor
    from edgekit.serve.grpc.reader import Plan, Repeating
    from edgekit.serve.model import Model


class Call(Stream):
    """What unary calls and streams share.

    `answering` is False once the status is decided, or nobody waits for it; `begun` once the answer's head is sent.
    `traceparent` is the trace that it belongs to. `many`: whether a client may take its time between messages.
    """

    many = begun = False
    answering = True
    traceparent = ""
    buffer: bytearray | None = None
    timer: asyncio.TimerHandle | None = None

    def __init__(self, connection: Connection, stream_id: int, send_window: int, route: Route, serve: GrpcDoor) -> None:
        Stream.__init__(self, connection, stream_id, send_window)
        self.route, self.serve = route, serve

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
        self.give_up()
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
        if self._stop():
            self.give_up()

    def give_up(self) -> None:
        """What is under way for this call is of no use any more."""

    def check_time(self, now: float) -> None:
        """A message must come as fast as the limits say."""
        Stream.check_time(self, now)
        limits = self.connection.limits
        came = len(self.buffer or b"")
        wanted = self.answering and self.remote_open and self.reading and (came or not self.many)
        if wanted and now - self.since > limits.body_s + came / limits.body_rate:
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
    """One message, one answer. `cancel` gives up the inference while it waits.

    `learning` is what may be understood once and for all from this call: what its message means, and what it asks.
    """

    cancel: Cancel | None = None
    learning: tuple[Plan, Model, InferRequest] | None = None

    def give_up(self) -> None:
        """Nobody waits for the inference any more."""
        if self.cancel is not None:
            self.cancel()
            self.cancel = None

    def drained(self) -> None:
        """Nothing waits to be sent: an answer leaves as a whole."""

    def received(self, data: bytes | memoryview, ended: bool) -> None:
        """A piece of the request; it is acted on once it is whole."""
        if not self.answering:
            return
        try:
            whole: Message = data
            if self.buffer is not None or not ended:
                whole = self.keep(data)
                if len(whole) >= PREFIX.size and len(whole) > PREFIX.size + PREFIX.unpack_from(whole)[1]:
                    raise InputError("The call carries more than one message.")
                if not ended:
                    return
            known = None
            if self.route.method is INFER:
                reader = self.serve.reader
                plan = reader.plan(whole)
                short = None if plan is None or self.route.encoding else plan.repeating
                if short is not None and (short.joins and short.join(whole, partial(self._joined, short))):
                    return
                if short is not None and self._now(short, whole):
                    return
                known = reader.recall(whole)
                if known is not None and plan is not None and plan.learns:
                    self.learning = (plan, *known)
            if known is None:
                self._act(whole)
            elif (cancel := self.serve.infer(*known, self.answer, self.traceparent)) is not None and self.answering:
                self.cancel = cancel
        except Exception as error:
            self.fail(error)

    def _now(self, repeating: Repeating, message: Message) -> bool:
        started_ns = time.perf_counter_ns()
        try:
            answer = repeating.now(message)
        except Exception as error:
            repeating.failed(error, started_ns)
            raise
        if answer is not None:
            self._finish(*answer)
        return answer is not None

    def _joined(self, repeating: Repeating, outputs: Tensors | Exception) -> None:
        if isinstance(outputs, Exception):
            repeating.failed(outputs, time.perf_counter_ns())
            self.fail(outputs)
        elif self.answering:
            try:
                self._finish(*repeating.answer(outputs))
            except Exception as error:
                self.fail(error)

    def _act(self, data: Message) -> None:
        if len(data) < PREFIX.size:
            raise InputError("The call carries no message.")
        packed, size = PREFIX.unpack_from(data)
        self.check_length(size)
        if len(data) != PREFIX.size + size:
            raise InputError(f"The message says that it has {size} bytes, it has {len(data) - PREFIX.size}.")
        message = memoryview(data)[PREFIX.size :]
        if packed:
            self.serve.unpack(self, packed, message, self._ask)
        else:
            self._ask(message)

    def _ask(self, message: Message) -> None:
        if not self.answering:
            return
        method = self.route.method
        if method is INFER:
            cancel = self.serve.read_and_infer(message, self.answer, self.traceparent)
            if self.answering:
                self.cancel = cancel
        elif isinstance(method, Later):
            method.ask(message, self._replied)
        elif callable(method):
            self._replied(method(message))

    def _replied(self, response: bytes | Exception) -> None:
        if isinstance(response, Exception):
            self.fail(response)
        elif self.answering:
            self._reply([response], len(response))

    def answer(self, result: InferResponse | Exception) -> None:
        """What became of the inference."""
        if not self.answering:
            return
        if isinstance(result, Exception):
            self.fail(result)
            return
        try:
            if self.route.encoding:
                self._reply(*encode_response(result))
                return
            self._finish(*encode_framed(result))
            if self.learning is not None:
                self.serve.learn(*self.learning, result)
        except Exception as error:
            self.fail(error)

    def _finish(self, parts: Sequence[bytes | memoryview], size: int) -> None:
        if self.connection.output.backlog:
            self.check_backlog()
        self._stop()
        self.connection.output.answer(self, HEAD, parts, size, TRAILERS)

    def _reply(self, parts: list[bytes | memoryview], size: int) -> None:
        self.check_backlog()
        encoding = self.route.encoding
        if encoding and size >= MIN_BYTES:
            self.serve.pack(self, encoding, parts, size, partial(self._send, head_block(encoding), 1))
        else:
            self._send(HEAD, 0, parts, size)

    def _send(self, head: bytes, packed: int, parts: Sequence[bytes | memoryview], size: int) -> None:
        if self._stop():
            self.connection.output.answer(self, head, [PREFIX.pack(packed, size), *parts], PREFIX.size + size, TRAILERS)
