"""Who runs the model: the thread that parsed the request when that is quickest, else a thread of the model's own."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgekit.runtime.session import Session
from edgekit.serve.messages import RequestError
from edgekit.tensors import Feed, Tensors

INLINE_S = 300e-6
"""A run shorter than this costs other requests less waiting than handing it to another thread costs itself."""

QUEUE_LIMIT = 256
"""Requests that may wait for one model; more are refused at once, so that memory and waiting stay bounded."""

Post: TypeAlias = Callable[..., Any]
"""`post(function, *arguments)` calls a function on the server's own thread, soon. Safe from any thread."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run as measured at warm-up: how long it took, and how large its feed was."""

    latency_s: float
    feed_bytes: int

    def of(self, feed: Feed) -> float:
        """Seconds that `feed` will take, taking time to grow with bytes and never to shrink."""
        size = size_of(feed)
        return self.latency_s if size <= self.feed_bytes else self.latency_s * size / max(1, self.feed_bytes)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: outputs or an error, and the time it waited and ran, in nanoseconds."""

    outputs: Tensors
    error: Exception | None
    queue_ns: int
    run_ns: int


Done: TypeAlias = Callable[[Outcome], None]


def size_of(feed: Feed) -> int:
    """Bytes of all tensors in `feed` (8 a string)."""
    size = 0
    for value in feed.values():
        size += value.nbytes
    return size


def measure(session: Session, feed: Feed, *, runs: int = 15, budget_s: float = 0.03) -> Cost:
    """The median latency of `session` on `feed`: at most `runs` runs, fewer once `budget_s` is spent."""
    times: list[float] = []
    session.run(feed)
    while len(times) < runs and sum(times) < budget_s:
        start = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - start)
    return Cost(statistics.median(times), size_of(feed))


class Worker:
    """Runs one model. `cost` decides per request where: None (not measured) means always on the worker's thread."""

    def __init__(self, session: Session, *, cost: Cost | None, queue_limit: int = QUEUE_LIMIT) -> None:
        self._session = session
        self._cost = cost
        self._jobs: queue.SimpleQueue[tuple[Feed, Done, int, Post] | None] = queue.SimpleQueue()
        self._limit = queue_limit
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def inline(self) -> bool:
        """Whether a request of the warm-up's size runs on the thread that parsed it."""
        return self._cost is not None and self._cost.latency_s <= INLINE_S

    def submit(self, feed: Feed, done: Done, post: Post) -> None:
        """Run `feed` and call `done` with the outcome: before returning, or later through `post`.

        Raises:
            RequestError: too many requests wait already (503).
        """
        if self._cost is not None and self._cost.of(feed) <= INLINE_S:
            done(self._run(feed, time.perf_counter_ns()))
            return
        if self._jobs.qsize() >= self._limit:
            raise RequestError(
                503, f"The model has {self._limit} requests waiting. Send this one again later.", retry_after_s=1
            )
        if self._thread is None:
            with self._lock:
                self._thread = threading.Thread(target=self._loop, name="edgekit-worker", daemon=True)
                self._thread.start()
        self._jobs.put((feed, done, time.perf_counter_ns(), post))

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Finish what waits (up to `timeout_s`), then release the model."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():  # the model is still in use there; the process ends soon
                return
            self._thread = None
        self._session.close()

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            feed, done, queued_ns, post = job
            outcome = self._run(feed, queued_ns)
            try:
                post(done, outcome)
            except RuntimeError:  # the server's loop is closed: nobody waits for this any more
                return

    def _run(self, feed: Feed, queued_ns: int) -> Outcome:
        start = time.perf_counter_ns()
        try:
            outputs, error = self._session.run(feed), None
        except Exception as failure:  # a backend may raise anything; the server goes on
            outputs, error = {}, failure
        return Outcome(outputs, error, start - queued_ns, time.perf_counter_ns() - start)
