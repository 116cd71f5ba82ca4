"""The short way through HTTP for inferences that repeat in all but their tensors: see `repeat`."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from edgekit.serve.app import App
from edgekit.serve.codec import encode_response
from edgekit.serve.http_messages import BINARY, HttpRequest, HttpResponse, Send, error_response
from edgekit.serve.messages import InferRequest, InferResponse
from edgekit.serve.model import Model
from edgekit.serve.repeat import Repeat, repeats
from edgekit.serve.worker import Outcome, Post
from edgekit.tensors import Tensors

if TYPE_CHECKING:
    from edgekit.serve.reader import Plan

_CODED = frozenset((b"accept-encoding", b"content-encoding", b"traceparent"))


class Shortcut:
    """Requests with one head and one JSON part. Made by `shortcut_for`."""

    def __init__(self, repeat: Repeat, plan: Plan, json: bytes, result: InferResponse) -> None:
        self._repeat, self._body_bytes, self._json = repeat, plan.body_bytes, json
        parts, length = encode_response(result)
        answer = HttpResponse(200, parts, BINARY, binary_header(length))
        self._first = answer.head(sum(map(len, parts))) + bytes(parts[0])
        self.joins = repeat.joins

    @property
    def holds(self) -> bool:
        """Whether nothing has changed that it rests on."""
        return self._repeat.holds

    def join(self, data: bytes, end: int, send: Send) -> bool:
        """Answer the request in `data`, whose body begins at `end`, as this turn ends; False if that cannot be."""
        return data.startswith(self._json, end) and self._repeat.join(data, end, partial(self._given, send))

    def _given(self, send: Send, outputs: Tensors | Exception) -> None:
        if isinstance(outputs, Exception):
            self._repeat.count_failed(outputs, time.perf_counter_ns())
            send(error_response(outputs))
        else:
            send(self._answer(outputs))

    def now(self, data: bytes, end: int) -> bytes | HttpResponse | None:
        """The answer to the request in `data`, whose body begins at `end`, if it can be had at once."""
        if not data.startswith(self._json, end):
            return None
        started_ns = time.perf_counter_ns()
        try:
            outputs = self._repeat.run_now(data, end)
        except Exception as error:  # a backend may raise anything; the server goes on
            self._repeat.count_failed(error, started_ns)
            return error_response(error)
        return None if outputs is None else self._answer(outputs)

    def later(self, request: HttpRequest, data: bytes, send: Send) -> bool:
        """Run `request`, which is in `data`, in its turn; False if that is not this one's to do."""
        body = len(data) - self._body_bytes
        repeat, started_ns = self._repeat, request.arrived_ns
        if not data.startswith(self._json, body) or not repeat.holds:
            return False
        try:
            job = repeat.submit(data, body, partial(self._done, started_ns, send))
        except Exception as error:
            repeat.count_failed(error, started_ns)
            send(error_response(error))
            return True
        if job is not None:
            request.cancel = repeat.canceller(job)
        return True

    def _done(self, started_ns: int, send: Send, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._repeat.count_failed(outcome.error, started_ns)
            send(error_response(outcome.error))
        else:
            self._repeat.count(outcome, started_ns)
            send(self._answer(outcome.outputs))

    def _answer(self, outputs: Tensors) -> bytes | HttpResponse:
        answer = self._first
        for name, shape in self._repeat.shapes:
            value = outputs[name]
            if value.shape != shape:
                parts, length = encode_response(self._repeat.response(outputs))
                return HttpResponse(200, parts, BINARY, binary_header(length))
            answer += value.tobytes()
        return answer


def binary_header(length: int | None) -> bytes:
    """The line that says how long the JSON part before raw tensors is; nothing where there are none."""
    return b"" if length is None else b"Inference-Header-Content-Length: %d\r\n" % length


def shortcut_for(
    app: App, model: Model, post: Post, request: HttpRequest, asked: InferRequest, result: InferResponse
) -> Shortcut | None:
    """The short way for requests like `request`, which was answered with `result`; None where there is none."""
    length = request.headers.get(b"inference-header-content-length")
    if length is None or not _CODED.isdisjoint(request.headers) or not repeats(app, model, asked, result):
        return None
    json = request.body[: int(length)]
    plan = model.reader.plan(json, len(request.body))
    return None if plan is None else Shortcut(Repeat(app, model, post, plan.tensors, result), plan, json, result)
