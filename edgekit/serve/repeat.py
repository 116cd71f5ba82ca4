"""Inferences that repeat in all but their tensors: understood once, then only run, counted and answered.

A steady client sends the same bytes before other numbers. What they mean was worked out for the first such request; a
Repeat keeps it, and holds as long as nothing that it rests on has changed. Each door adds its own bytes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from edgekit.serve.app import App, cancel, status_of
from edgekit.serve.messages import InferRequest, InferResponse, OutputTensor
from edgekit.serve.model import Model
from edgekit.serve.turn_batch import Given
from edgekit.serve.worker import Done, Job, Outcome, Post
from edgekit.tensors import Array, Tensors, with_defaults

_PLAIN = frozenset(("binary_data_output",))

LARGEST = 64 << 10
"""Answers above this go the long way, which does not copy them."""

MISSES = 8
"""What did not repeat so often is not tried again."""

Places: TypeAlias = "Sequence[tuple[str, np.dtype[Any], tuple[int, ...], int]]"
"""Raw tensors in a request: name, numpy type, shape, and how far from where they are counted they begin."""


class Repeat:
    """What is known of requests like one that was answered with `result`; `tensors` are where theirs lie."""

    def __init__(self, app: App, model: Model, post: Post, tensors: Places, result: InferResponse) -> None:
        self._app, self._model, self._post, self._tensors = app, model, post, tensors
        self._repository, self._traces, self._logs = app.repository, app.traces, app.logs
        self._changes = app.repository.changes
        self._worker, self._stats, self._run = model.worker, model.stats, model.session.run
        self._names = tuple((out.name, out.datatype) for out in result.outputs)
        self.shapes = tuple((out.name, out.value.shape) for out in result.outputs)
        given: Tensors = {name: np.zeros(shape, dtype) for name, dtype, shape, _ in tensors}
        like = with_defaults(given, model.defaults, model.inputs)
        self._defaults = {name: value for name, value in like.items() if name not in given}
        self._rows = model.rows_of(like)
        self._quick = model.worker.is_quick(like) and not model.worker.pads
        self._spans = tuple((offset, offset + dtype.itemsize * math.prod(shape)) for _, dtype, shape, offset in tensors)
        inputs = [(name, dtype, shape) for name, dtype, shape, _ in tensors]
        self._turn = model.worker.turn(inputs, stats=self._stats, soon=app.soon) if self._quick else None
        self.joins = self._turn is not None and not self._defaults

    @property
    def holds(self) -> bool:
        """Whether nothing has changed that it rests on."""
        return self._repository.changes == self._changes and not (self._traces.active or self._logs.verbose)

    def run_now(self, data: bytes | bytearray | memoryview, base: int) -> Tensors | None:
        """The outputs for the tensors in `data`, counted from `base`; None if they cannot be had at once.

        Raises what the runtime does; that is not counted yet.
        """
        if not (self._quick and self.holds):
            return None
        if self._worker.closed if self.joins else not self._worker.take():
            return None
        started_ns = time.perf_counter_ns()
        outputs = self._run(self._feed(data, base))
        run_ns = time.perf_counter_ns() - started_ns
        self._stats.ran_alone(self._rows, run_ns)
        return outputs

    def join(self, data: bytes | bytearray | memoryview, base: int, given: Given) -> bool:
        """Run as this turn of the loop ends, with others that came in it, if `joins`; False if that cannot be now."""
        if self._turn is None or not self.holds or self._worker.closed or not self._turn.gathers():
            return False
        self._turn.add(tuple([data[base + start : base + end] for start, end in self._spans]), given)
        return True

    def submit(self, data: bytes, base: int, done: Done) -> Job | None:
        """Run in its turn: as `Worker.submit`, whose errors it raises."""
        timeout_ms = self._model.options.timeout_ms
        timeout_s = None if timeout_ms is None else timeout_ms / 1e3
        feed = self._feed(data, base)
        job = self._worker.submit(feed, done, self._post, timeout_s=timeout_s, soon=self._app.soon)
        if job is not None and timeout_s is not None and self._app.later is not None:
            self._app.later(timeout_s, self._worker.sweep)
        return job

    def canceller(self, job: Job) -> partial[bool]:
        """Gives up `job`: a Cancel."""
        return partial(cancel, self._model, job)

    def count(self, outcome: Outcome, started_ns: int) -> None:
        """Count an answered request that was submitted."""
        stats, rows, run_ns = self._stats, self._rows, outcome.run_ns
        if outcome.first:
            stats.ran(outcome.rows or rows, run_ns, outcome.join_ns, outcome.split_ns)
        total_ns = time.perf_counter_ns() - started_ns
        stats.succeeded(rows, total_ns, outcome.queue_ns, run_ns, outcome.join_ns, outcome.split_ns)

    def count_failed(self, error: Exception, started_ns: int) -> None:
        """Count a request that was answered with an error."""
        self._stats.failed(time.perf_counter_ns() - started_ns, status_of(error))

    def response(self, outputs: Tensors) -> InferResponse:
        """The answer where its shapes are not as they were: they depend on what is in the tensors."""
        given = tuple(OutputTensor(name, kind, outputs[name], True) for name, kind in self._names)
        return InferResponse(self._model.name, self._model.version, given)

    def _feed(self, data: bytes | bytearray | memoryview, base: int) -> dict[str, Array]:
        feed: dict[str, Array] = {}
        for name, dtype, shape, offset in self._tensors:
            value: Array = np.ndarray(shape, dtype, data, base + offset)
            feed[name] = value if value.flags.aligned else value.copy()
        if self._defaults:
            feed.update(self._defaults)
        return feed


def watched(app: App) -> bool:
    """Whether single requests are looked at, so that all of them go the long way for now."""
    return app.traces.active or app.logs.verbose


def repeats(app: App, model: Model, asked: InferRequest, result: InferResponse) -> bool:
    """Whether requests like `asked`, which was answered with `result`, can go the short way.

    Not where something looks at each of them (energy, the cache, cooling), nor with sequences, classes, shared memory,
    and types whose bytes need a look.
    """
    if app.energy is not None or app.cooling is not None or model.cache is not None:
        return False
    if not asked.parameters.keys() <= _PLAIN:
        return False
    if not result.outputs or result.id or result.energy is not None or any(o.classes or o.place for o in asked.outputs):
        return False
    numbers = all(o.binary and o.place is None and o.value.dtype.kind in "iuf" for o in result.outputs)
    return numbers and sys.byteorder == "little" and sum(o.value.nbytes for o in result.outputs) <= LARGEST
