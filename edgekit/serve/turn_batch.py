"""Quick requests that come in one turn of the server's loop, run together as the turn ends.

For requests that repeat (see `repeat`): nobody waits for company, there is no queue and no other thread, and joining is
one copy of bytes. What that costs beside the run is so little that it pays for models of a few microseconds too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from edgekit.errors import BackendError
from edgekit.serve.stats import Stats
from edgekit.tensors import Tensors

LOGGER = logging.getLogger(__name__)

COMPANY = 1.5
"""Requests in a usual turn from which on gathering them pays: with fewer, clients only wait for each other."""

SINGLE = 31
"""While turns have fewer, so many requests are run at once before another is gathered, to see if others come."""

Given: TypeAlias = Callable[[Tensors | Exception], None]
"""Takes the outputs of one request, or why there are none."""

Raw: TypeAlias = "tuple[bytes | bytearray | memoryview, ...]"

Places: TypeAlias = "Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]"
"""Inputs of a request: name, numpy type, shape."""

Soon: TypeAlias = Callable[..., Any]
"""`soon(function)` calls a function on the server's thread once what has come by now is read."""


class TurnBatch:
    """Requests of one model whose inputs have the same names, types and shapes; the first axis of all is the batch.

    Args:
        run: the session's.
        inputs: name, numpy type and shape of each input of a request.
        stats: counts runs and answers.
        most: rows of one run; a request with more runs alone.
    """

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        inputs: Places,
        *,
        stats: Stats,
        most: int,
        soon: Soon,
    ) -> None:
        self._run, self._stats, self._soon = run, stats, soon
        self._inputs = tuple((name, dtype, shape[1:]) for name, dtype, shape in inputs)
        self._rows = inputs[0][2][0]
        self._most = max(1, most // self._rows)
        self._waiting: list[tuple[Raw, Given, int]] = []
        self._usual, self._single = COMPANY, 0  # requests in a turn lately, and how many more are not gathered

    def gathers(self) -> bool:
        """Whether the next request is to be added; False: others are not expected, so it is better run at once."""
        if self._single:
            self._single -= 1
            return False
        return True

    def add(self, raw: Raw, given: Given) -> None:
        """Take a request: the bytes of each input. `given` is called as the turn ends."""
        waiting = self._waiting
        waiting.append((raw, given, time.perf_counter_ns()))
        if len(waiting) == 1:
            self._soon(self.flush)

    def flush(self) -> None:
        """Answer what came, in as few runs as take it, evenly filled."""
        waiting, self._waiting = self._waiting, []
        count = len(waiting)
        if not count:
            return
        self._usual += (count - self._usual) / 8
        if self._usual < COMPANY:
            self._single = SINGLE
        if count <= self._most:
            self._answer(waiting)
            return
        runs = -(-count // self._most)
        ends = [count * (i + 1) // runs for i in range(runs)]
        for start, end in zip([0, *ends], ends):
            self._answer(waiting[start:end])

    def _answer(self, jobs: Sequence[tuple[Raw, Given, int]]) -> None:
        rows, count, begun_ns = self._rows, len(jobs), time.perf_counter_ns()
        try:
            feed = self._joined([raw for raw, _, _ in jobs])
            joined_ns = time.perf_counter_ns()
            outputs = self._run(feed)
            ran_ns = time.perf_counter_ns()
            parts = [outputs] if count == 1 else self._split(outputs, count)
        except Exception as error:  # a backend may raise anything; the fault may be one request's
            if count > 1:
                for job in jobs:
                    self._answer([job])
            else:
                _give(jobs[0][1], error)
            return
        split_ns = time.perf_counter_ns() - ran_ns
        waits_ns = [begun_ns - came_ns for _, _, came_ns in jobs]
        self._stats.ran_together(rows, waits_ns, joined_ns - begun_ns, ran_ns - joined_ns, split_ns)
        for (_, given, _), part in zip(jobs, parts):
            _give(given, part)

    def _joined(self, raws: Sequence[Raw]) -> Tensors:
        rows = self._rows * len(raws)
        feed: Tensors = {}
        for i, (name, dtype, rest) in enumerate(self._inputs):
            data = b"".join([raw[i] for raw in raws])  # one array, aligned as numpy's own
            feed[name] = np.ndarray((rows, *rest), dtype, data)
        return feed

    def _split(self, outputs: Tensors, count: int) -> list[Tensors]:
        rows = self._rows
        for name, value in outputs.items():
            if len(value) != rows * count:
                raise BackendError(f"Output '{name}' has {len(value)} rows for {rows * count} that went in.")
        if len(outputs) == 1:
            ((name, value),) = outputs.items()
            return [{name: value[at : at + rows]} for at in range(0, rows * count, rows)]
        return [{k: v[at : at + rows] for k, v in outputs.items()} for at in range(0, rows * count, rows)]


def _give(given: Given, outputs: Tensors | Exception) -> None:
    try:
        given(outputs)
    except Exception:  # the others of this turn still get their answers
        LOGGER.exception("an answer could not be given")


def first_axis(inputs: Places) -> bool:
    """Whether all these inputs have the same number of rows in front, and at least one."""
    rows = {shape[0] if shape else 0 for _, _, shape in inputs}
    return len(rows) == 1 and 0 not in rows
