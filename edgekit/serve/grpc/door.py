"""The gRPC door: calls of many connections to the App and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekit._lazy import available, require
from edgekit.errors import InputError
from edgekit.serve.app import Answer, App, Cancel
from edgekit.serve.compress import compress, decompress
from edgekit.serve.grpc.call import Call, UnaryCall
from edgekit.serve.grpc.codec import Message, varint
from edgekit.serve.grpc.reader import InferReader, Plan, Repeating
from edgekit.serve.grpc.route import INFER, STREAM, Check, Method, Route, route_of
from edgekit.serve.grpc.schema import schema
from edgekit.serve.grpc.service import Service
from edgekit.serve.grpc.status import HEAD, TRAILERS
from edgekit.serve.grpc.streaming import StreamCall
from edgekit.serve.h2.connection import Connection
from edgekit.serve.h2.door import H2Door
from edgekit.serve.h2.headers import Head
from edgekit.serve.h2.limits import Limits
from edgekit.serve.h2.owner import Given, Owed, Whole
from edgekit.serve.messages import InferRequest, InferResponse
from edgekit.serve.model import Model
from edgekit.serve.repeat import Repeat, repeats, watched
from edgekit.serve.worker import Post
from edgekit.tensors import Tensors

if TYPE_CHECKING:
    from edgekit.serve.peers import Peers

OFFLOAD_BYTES = 32 << 10
"""Messages above this are compressed and decompressed on another thread, so that other calls do not wait."""

WARM_S = 0.05
"""Libraries of messages and header blocks are loaded so long after the server is there: HTTP need not wait for them."""

Parts: TypeAlias = "list[bytes | memoryview]"


class GrpcDoor(H2Door):
    """The calls of one port. `post` calls back on the server's thread, `check` asks who calls.

    With `peers`, calls about the whole server hold for all workers.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        post: Post,
        check: Check | None = None,
        peers: Peers | None = None,
    ) -> None:
        for module in ("hpack", "google.protobuf"):
            if not available(module):
                require(module, why="serve over gRPC")
        super().__init__(limits=limits, loop=loop)
        self._app, self._post, self._check, self._peers = app, post, check, peers
        self.reader = InferReader(app.repository.find)
        self._pool: ThreadPoolExecutor | None = None
        loop.call_later(WARM_S, self.warm)

    def warm(self) -> None:
        """Load and make what the first call needs."""
        require("hpack", why="serve over gRPC")
        assert self._methods
        assert self._final

    @cached_property
    def _methods(self) -> dict[bytes, Method]:
        return Service(self._app).methods(self._peers)

    @cached_property
    def _final(self) -> bytes:
        """What marks an answer as the only one to its request."""
        message = schema().message("ModelInferResponse")()
        message.parameters["triton_final_response"].bool_param = True
        return bytes(message.SerializeToString())

    def new_stream(self, connection: Connection, stream_id: int, send_window: int, head: Head) -> Call:
        """The call that `head` asks for."""
        route: Route | None = head.route
        if route is None:
            route = head.route = route_of(head, self._methods, self._check)
        kind = StreamCall if route.method == STREAM else UnaryCall
        call = kind(connection, stream_id, send_window, route, self)
        if self._app.traces.spans is not None:
            call.traceparent = head.headers.get(b"traceparent", b"").decode("latin-1")
        return call

    def at_once(self, head: Head, body: bytes, room: int, given: Given) -> Whole | Owed | None:
        """The answer to a call that came in one piece, if it repeats one in all but its tensors."""
        route: Route | None = head.route
        if route is None or route.method is not INFER or route.encoding or route.refusal is not None:
            return None
        plan = self.reader.plan(body)
        short = None if plan is None else plan.repeating
        if short is None:
            return None
        if short.joins and short.size <= room and short.join(body, partial(_joined, short, given)):
            return Owed.SOON
        try:
            answer = short.now(body)
        except Exception:  # the long way tells the client
            return None
        return None if answer is None else (HEAD, *answer, TRAILERS)

    def read_and_infer(self, message: Message, answer: Answer, traceparent: str = "") -> Cancel | None:
        """Run the inference in `message` and call `answer` with what became of it, now or later.

        What is returned gives it up while it waits.
        """
        try:
            return self.infer(*self.reader.read(message), answer, traceparent)
        except Exception as error:
            answer(error)
            return None

    def infer(self, model: Model, request: InferRequest, answer: Answer, traceparent: str = "") -> Cancel | None:
        """Run `request`; as `read_and_infer`."""
        if traceparent:
            request.traceparent = traceparent
        return self._app.infer(model, request, answer, self._post, time.perf_counter_ns())

    def learn(self, plan: Plan, model: Model, asked: InferRequest, result: InferResponse) -> None:
        """Find the short way for messages like the one that `plan` understood, which was answered with `result`."""
        if watched(self._app):
            return
        if repeats(self._app, model, asked, result):
            plan.repeating = Repeating(Repeat(self._app, model, self._post, plan.tensors, result), plan, result)
        else:
            plan.misses += 1

    def stream_answer(self, parts: Parts, size: int) -> tuple[Parts, int]:
        """An answer of `parts` as a message of a stream, marked as the only one to its request."""
        size += len(self._final)
        head = b"\x12" + varint(size)  # infer_response, field 2
        return [head, *parts, self._final], len(head) + size

    def stream_error(self, text: str) -> tuple[Parts, int]:
        """An error as a message of a stream, which goes on."""
        message = bytes(schema().message("ModelStreamInferResponse")(error_message=text).SerializeToString())
        return [message], len(message)

    def unpack(self, call: Call, packed: int, message: Message, then: Callable[[Message], None]) -> None:
        """Decompress a message, and go on with it. Raises InputError: it should not be compressed, or is damaged."""
        encoding = call.route.encoding
        if packed != 1 or not encoding:
            raise InputError("The message is marked as compressed, but grpc-encoding names no encoding.")
        work = partial(decompress, bytes(message), encoding, max_bytes=self.limits.message_bytes)
        if len(message) < OFFLOAD_BYTES:
            then(work())
        else:
            self._offload(call, work, then)

    def pack(self, call: Call, encoding: str, parts: Parts, size: int, then: Callable[[Parts, int], None]) -> None:
        """Compress a message of `size` bytes, and go on with it."""

        def go_on(data: Message) -> None:
            then([bytes(data)], len(data))

        work: Callable[[], bytes] = partial(compress, parts, encoding)
        if size < OFFLOAD_BYTES:
            go_on(work())
        else:
            self._offload(call, work, go_on)

    def _offload(self, call: Call, work: Callable[[], bytes], then: Callable[[Message], None]) -> None:
        """Do `work` on another thread, and `then` go on with its result on the server's own."""

        def arrive(future: Future[Any]) -> None:
            try:
                then(future.result())
            except Exception as error:
                call.fail(error)

        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekit-coding")
        self._pool.submit(work).add_done_callback(partial(self._post, arrive))

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _joined(repeating: Repeating, given: Given, outputs: Tensors | Exception) -> None:
    """Hand on what became of a call that ran with others."""
    if isinstance(outputs, Exception):
        repeating.failed(outputs, time.perf_counter_ns())
        given(outputs)
    else:
        given((HEAD, *repeating.answer(outputs), TRAILERS))
