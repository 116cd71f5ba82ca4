"""What a model costs, measured before it serves: alone, and with requests joined."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.errors import BackendError, InputError
from edgekit.runtime.session import Session
from edgekit.serve.joining import Checked, Joiner
from edgekit.tensors import Array, Feed, sample_count, take_samples

INLINE_S = 300e-6
"""A run shorter than this costs other requests less waiting than handing it to another thread costs itself."""

MAX_ROWS = 32
"""Rows that are joined at most unless an option says more: beyond, the first of them waits long for the last."""

PAYS = 0.9
"""Twice the rows must cost less than this much a row, else the smaller batch is as good and quicker."""

NEARLY = 1.25
"""Within this of the least, fewer rows are better: their answers leave sooner, and clients work meanwhile."""

MAX_JOINED_BYTES = 32 << 20

QUEUE_S = 4e-6
"""What a place in the queue takes for each request, beside looking at it, joining it and taking its outputs apart."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run as measured at warm-up: how long it took, and how large its feed was.

    `steps` are (bytes, seconds) of larger runs, smallest first; `quickest_s` is the shortest run, 0 if not known.
    """

    latency_s: float
    feed_bytes: int
    steps: tuple[tuple[int, float], ...] = ()
    quickest_s: float = 0.0

    def of(self, feed: Feed) -> float:
        """Seconds that `feed` will take, taking time to grow with bytes and never to shrink."""
        return self.of_bytes(size_of(feed))

    def of_bytes(self, size: int) -> float:
        """Seconds that a feed of `size` bytes will take."""
        if size <= self.feed_bytes:
            return self.latency_s
        known, latency_s = self.feed_bytes, self.latency_s
        for known, latency_s in self.steps:
            if size <= known:
                return latency_s
        return latency_s * size / max(1, known)

    def rows_that_pay(self, extra_s: float, *, longest_s: float = math.inf) -> int:
        """The fewest rows at which one costs about the least, if each takes `extra_s` more in company; 1: none pay.

        Runs that take over `longest_s` are left out.
        """
        per_row_s = {1: self.latency_s}
        for size, run_s in self.steps:
            if run_s <= longest_s:
                rows = size // max(1, self.feed_bytes)
                per_row_s[rows] = run_s / rows + extra_s
        least_s = min(per_row_s.values())
        if least_s > PAYS * self.latency_s:
            return 1
        return min(rows for rows, each_s in per_row_s.items() if each_s <= NEARLY * least_s)


def size_of(feed: Feed) -> int:
    """Bytes of all tensors in `feed` (8 a string)."""
    size = 0
    for value in feed.values():
        size += value.nbytes
    return size


def measure(session: Session, feed: Feed, *, runs: int = 15, budget_s: float = 0.03) -> Cost:
    """The median latency of `session` on `feed`: at most `runs` runs, fewer once `budget_s` is spent."""
    session.run(feed)
    times = _times_s(session, feed, runs=runs, budget_s=budget_s)
    return Cost(statistics.median(times), size_of(feed), quickest_s=min(times))


def _times_s(session: Session, feed: Feed, *, runs: int, budget_s: float) -> list[float]:
    times: list[float] = []
    while len(times) < runs and sum(times) < budget_s:
        start = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - start)
    return times


def measure_joined(
    session: Session, joiner: Joiner, inputs: Feed, cost: Cost, *, budget_s: float = 0.06, limit: float = 1e-3
) -> tuple[int, Cost]:
    """How many rows are worth joining (1: none are), and the cost with what larger runs take.

    `inputs` are samples. Rows are doubled while a row gets cheaper, with all that joining takes, `budget_s` lasts and
    the model takes them (an engine has a largest batch). A model whose rows come out differently in company (dynamic
    quantization, statistics over the batch) by more than `limit` of their norm is not joined.
    """
    best, per_row_s, steps, spent_s, rows = 1, cost.quickest_s or cost.latency_s, [], 0.0, 2
    barely, least_s = 1, per_row_s  # the same for short runs alone: some requests cost next to nothing to join
    while joiner.joinable and rows <= MAX_ROWS and rows * cost.feed_bytes <= MAX_JOINED_BYTES:
        if spent_s + 3 * rows * per_row_s > budget_s:
            break
        parts = _parts(session, joiner, inputs, rows)
        start = time.perf_counter()
        try:
            if not parts or (rows == 2 and not _as_alone(session, joiner, parts, limit)):
                return 1, cost
            feed = joiner.join(parts)
            times = _times_s(session, feed, runs=5, budget_s=budget_s / 4)
            whole_s = min(times) + _handling_s(session, joiner, parts, feed)
        except (BackendError, InputError):
            break
        spent_s += time.perf_counter() - start
        steps.append((size_of(feed), statistics.median(times)))
        if whole_s / rows < PAYS * per_row_s:  # the quickest: other work on the machine only ever adds
            best, per_row_s = rows, whole_s / rows
        if min(times) <= INLINE_S and min(times) / rows < PAYS * least_s:
            barely, least_s = rows, min(times) / rows
        if rows >= 4 * max(best, barely):
            break
        rows *= 2
    return best, replace(cost, steps=tuple(steps))


def _handling_s(session: Session, joiner: Joiner, parts: Sequence[Checked], feed: Feed, *, runs: int = 5) -> float:
    """What looking at each of `parts`, joining them and taking the outputs apart adds to the run itself."""
    outputs, times = session.run(feed), []
    for _ in range(runs):
        start = time.perf_counter()
        joiner.join([joiner.check(part.feed) for part in parts])
        joiner.split(outputs, parts)
        times.append(time.perf_counter() - start)
    return min(times) + len(parts) * QUEUE_S


def check_joined(session: Session, joiner: Joiner, inputs: Feed, rows: int, *, limit: float = 1e-3) -> str:
    """Why `rows` rows of samples cannot run together, as a clause; "" if they can."""
    if not joiner.joinable:
        return "its batch is not free, or an output has no row for each row that goes in"
    parts = _parts(session, joiner, inputs, rows)
    if not parts:
        return "its samples do not fit together"
    try:
        return "" if _as_alone(session, joiner, parts, limit) else "rows come out differently in company"
    except (BackendError, InputError) as error:
        return f"{rows} rows do not run: {error}"


def _parts(session: Session, joiner: Joiner, inputs: Feed, rows: int) -> list[Checked]:
    """`rows` samples to be joined, the first two in turn; none if they cannot be."""
    count = min(2, sample_count(inputs, session.inputs))
    alone = [joiner.check(take_samples(inputs, session.inputs, i, i + 1, session.inputs)) for i in range(count)]
    if any(p.key is None or p.key != alone[0].key for p in alone):
        return []
    return [alone[i % count] for i in range(rows)]


def _as_alone(session: Session, joiner: Joiner, parts: Sequence[Checked], limit: float) -> bool:
    """Whether each of `parts` comes out of one run as it does alone, within `limit` of its norm."""
    together = joiner.split(session.run(joiner.join(parts)), parts)
    for own, part in zip(together[:2], parts):
        (alone,) = joiner.split(session.run(joiner.join([part])), [part])
        if not all(_close(own[name], alone[name], limit) for name in alone):
            return False
    return True


def _close(a: Array, b: Array, limit: float) -> bool:
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    difference = float(np.linalg.norm((a - b).astype(np.float64).ravel()))
    return difference <= limit * float(np.linalg.norm(b.astype(np.float64).ravel())) + 1e-6
