"""Who runs the model: the thread that parsed the request when that is quickest, else threads of the model's own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from edgekit.runtime.session import Session
from edgekit.serve.batcher import Batcher, Policy, Ticket
from edgekit.serve.joining import Checked, Joiner
from edgekit.serve.messages import RequestError
from edgekit.serve.stats import Stats
from edgekit.serve.turn_batch import Places, TurnBatch, first_axis
from edgekit.serve.warmup import INLINE_S, Cost, size_of
from edgekit.tensors import Feed, Tensors

LOGGER = logging.getLogger(__name__)

PROBE = 32
"""While requests come one at a time, one of so many waits for the end of the loop's turn, to see if others come."""

TURN_S = 1e-6
"""What a request that repeats costs more in company than alone."""

Post: TypeAlias = Callable[..., Any]
"""`post(function, *arguments)` calls a function on the server's own thread, soon. Safe from any thread."""


@dataclass(slots=True)  # not frozen, which would triple the time to make one
class Outcome:
    """What a run gave one request: outputs or an error, and times in nanoseconds.

    `queue_ns` is its wait, `join_ns`, `run_ns` and `split_ns` are of the whole run, which had `rows` rows (0: those of
    this request alone); of the requests that shared a run, one is its `first`.
    """

    outputs: Tensors
    error: Exception | None
    queue_ns: int = 0
    run_ns: int = 0
    join_ns: int = 0
    split_ns: int = 0
    rows: int = 0
    first: bool = True


Done: TypeAlias = Callable[[Outcome], None]


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Ticket):
    """A request on its way through a worker."""

    checked: Checked
    done: Done
    post: Post
    queued_ns: int


class Worker:
    """Runs one model.

    `cost` decides per request where: None (not measured) means always on the worker's threads. Requests that come
    while the threads are busy, or in one turn of the server's loop, are joined up to `policy.max_rows` rows; a client
    that is alone never waits for others unless the policy has a delay.
    """

    def __init__(
        self,
        session: Session,
        *,
        cost: Cost | None,
        policy: Policy | None = None,
        joiner: Joiner | None = None,
        instances: int = 1,
    ) -> None:
        self._session = session
        self._cost = cost
        self._policy = self._full = policy or Policy()
        self._joiner = joiner or Joiner(session.inputs, session.outputs)
        self._joins = self._policy.max_rows > 1
        self.instances = instances
        self._batcher = Batcher(self._policy)
        self._ready = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._pending: list[Job] = []
        self._crowded = False
        self._turn = 0
        self._turns: WeakValueDictionary[Any, TurnBatch] = WeakValueDictionary()
        self.turn_rows = self._rows_of_a_turn()

    @property
    def inline(self) -> bool:
        """Whether a request of the warm-up's size runs on the thread that parsed it."""
        return self._cost is not None and self._cost.latency_s <= INLINE_S and not self._policy.delay_s

    @property
    def max_rows(self) -> int:
        """Rows that requests are joined to at most; 1 if they are not joined."""
        return self._policy.max_rows

    @property
    def full_rows(self) -> int:
        """What `max_rows` is without `limit_rows`."""
        return self._full.max_rows

    def limit_rows(self, rows: int) -> None:
        """Join requests to at most `rows` rows from now on. Called on the server's thread."""
        if rows == self._policy.max_rows:
            return
        preferred = tuple(p for p in self._full.preferred if p <= rows)
        with self._ready:
            self._policy = self._batcher.policy = replace(self._full, max_rows=rows, preferred=preferred)

    @property
    def closed(self) -> bool:
        """Whether `retire` was called: nothing new is taken."""
        return self._closed

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._batcher)

    def submit(
        self,
        feed: Feed,
        done: Done,
        post: Post,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        soon: Post | None = None,
    ) -> Job | None:
        """Run `feed` and call `done` with the outcome: before returning (then None), or later on the server's thread.

        Called on the server's thread. `soon` is as `post`, for calls from that thread; with it, requests that come in
        one turn of the server's loop are joined. A run that has not begun after `timeout_s` is given up (504).

        Raises:
            InputError: the feed does not fit the model.
            RequestError: too many requests wait already (503), or the model is being unloaded (503).
        """
        if self._closed:
            raise RequestError(503, "The model is being replaced or unloaded. Send this again.", retry_after_s=1)
        now_ns = time.perf_counter_ns()
        if self.is_quick(feed):
            if soon is None or self.take():
                done(self._alone(feed, now_ns))
                return None
            self._turn += 1
            job = self._job(feed, done, post, now_ns, priority, timeout_s)
            self._pending.append(job)
            if len(self._pending) == 1:
                soon(self._flush)
            return job
        job = self._job(feed, done, post, now_ns, priority, timeout_s)
        self._enqueue(job)
        return job

    def is_quick(self, feed: Feed) -> bool:
        """Whether `feed` runs on the server's thread: at once if there is nothing to join, else as the turn ends."""
        return self._cost is not None and not self._policy.delay_s and self._cost.of(feed) <= INLINE_S

    @property
    def pads(self) -> bool:
        """Whether runs may be of more than was asked for."""
        return self._joiner.pads

    def take(self) -> bool:
        """Whether a quick request is to be run at once, alone: no others are there to join it. It is counted then."""
        if not self._joins:
            return not self._closed
        turn = self._turn + 1
        if self._crowded or self._pending or self._closed or not turn % PROBE:
            return False
        self._turn = turn
        return True

    def turn(self, inputs: Places, *, stats: Stats, soon: Post | None) -> TurnBatch | None:
        """What runs requests with `inputs` (name, numpy type, shape) together; None where that does not pay."""
        if soon is None or self.turn_rows == 1 or not first_axis(inputs):
            return None
        key = tuple(inputs)
        found = self._turns.get(key)
        if found is None:
            found = TurnBatch(self._session.run, inputs, stats=stats, most=self.turn_rows, soon=soon)
            self._turns[key] = found
        return found

    def _rows_of_a_turn(self) -> int:
        """Rows of one run of requests that repeat, on the server's thread; 1 if that does not pay."""
        cost = self._cost
        if cost is None or not self.inline or self._joiner.pads or not self._joiner.joins_in_front:
            return 1
        if cost.steps:
            return cost.rows_that_pay(TURN_S, longest_s=INLINE_S)
        rows = self._policy.max_rows  # asked for, so not measured
        while rows > 1 and cost.of_bytes(rows * cost.feed_bytes) > INLINE_S:
            rows //= 2
        return rows

    def cancel(self, job: Job) -> bool:
        """Give up `job` if it has not begun; then its `done` is never called."""
        with self._ready:
            return self._batcher.cancel(job)

    def sweep(self) -> None:
        """Answer the requests whose time is over, though every thread is busy. Called on the server's thread."""
        with self._ready:
            late = self._batcher.expire(time.perf_counter_ns() / 1e9)
        for job in late:
            _give_up(job)

    def retire(self) -> None:
        """Take nothing new. Called on the server's thread, before `close`."""
        self._flush()
        for turn in list(self._turns.values()):
            turn.flush()
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def close(self, *, timeout_s: float = 5.0) -> bool:
        """Finish what waits. False if that takes longer than `timeout_s`: the session is in use then."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
            if thread.is_alive():
                return False
        return True

    def _job(self, feed: Feed, done: Done, post: Post, now_ns: int, priority: int, timeout_s: float | None) -> Job:
        checked = self._joiner.check(feed)
        return Job(
            rows=checked.rows,
            key=checked.key if self._joins else None,
            priority=min(priority, self._policy.levels),
            deadline_s=None if timeout_s is None else now_ns / 1e9 + timeout_s,
            checked=checked,
            done=done,
            post=post,
            queued_ns=now_ns,
        )

    def _enqueue(self, job: Job) -> None:
        with self._ready:
            displaced = self._batcher.push(job, job.queued_ns / 1e9)
            if len(self._threads) < self.instances:
                thread = threading.Thread(target=self._loop, name="edgekit-worker", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._ready.notify()
        if isinstance(displaced, Job):
            error = RequestError(503, "Requests of a higher priority took this one's place.", retry_after_s=1)
            displaced.done(Outcome({}, error))

    def _flush(self) -> None:
        """Run what came in this turn of the loop: here if that is short, else on the threads."""
        jobs, self._pending = self._pending, []
        self._crowded = len(jobs) > 1
        if len(jobs) == 1:
            jobs[0].done(self._alone(jobs[0].checked.feed, jobs[0].queued_ns))
            return
        assert self._cost is not None or not jobs
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job if job.key is None else job.key, []).append(job)
        for group in groups.values():
            for part in self._cut(group):
                self._run_part(part)

    def _cut(self, group: list[Job]) -> list[list[Job]]:
        """Runs of at most `max_rows` rows, evenly filled: a short last run costs almost as much as a full one."""
        rows = sum(job.checked.rows for job in group)
        runs = -(-rows // self._policy.max_rows)
        share = -(-rows // runs) if runs else 1
        out: list[list[Job]] = [[]]
        filled = 0
        for job in group:
            if out[-1] and filled + job.checked.rows > share:
                out.append([])
                filled = 0
            out[-1].append(job)
            filled += job.checked.rows
        return out

    def _run_part(self, part: list[Job]) -> None:
        size = sum(size_of(job.checked.feed) for job in part)
        if self._cost is not None and self._cost.of_bytes(size) <= INLINE_S:
            _answer(part, self._together(part))
            return
        for job in part:
            try:
                self._enqueue(job)
            except RequestError as error:
                job.done(Outcome({}, error))

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            batch, late = work
            if late and not _deliver(late[0].post, late, [_too_late(job) for job in late]):
                return
            if batch and not _deliver(batch[0].post, batch, self._together(batch)):
                return

    def _next(self) -> tuple[list[Job], list[Job]] | None:
        """What to run and what to give up; None when the worker is closed and nothing waits."""
        with self._ready:
            while True:
                now_s = time.perf_counter_ns() / 1e9
                late = [job for job in self._batcher.expire(now_s) if isinstance(job, Job)]
                batch = [job for job in self._batcher.next_batch(now_s) if isinstance(job, Job)]
                if batch or late:
                    return batch, late
                if self._closed and not len(self._batcher):
                    return None
                wake_s = self._batcher.wake_s()
                self._ready.wait(None if wake_s is None else max(0.0, wake_s - now_s))

    def _alone(self, feed: Feed, queued_ns: int) -> Outcome:
        start = time.perf_counter_ns()
        try:
            if self._joiner.pads:
                checked = self._joiner.check(feed)
                (outputs,) = self._joiner.split(self._session.run(self._joiner.join([checked])), [checked])
            else:
                outputs = self._session.run(feed)
        except Exception as failure:  # a backend may raise anything; the server goes on
            return Outcome({}, failure, start - queued_ns, time.perf_counter_ns() - start)
        return Outcome(outputs, None, start - queued_ns, time.perf_counter_ns() - start)

    def _together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """One run for `jobs`. If it fails, each gets a run of its own: the fault may be one request's."""
        start = time.perf_counter_ns()
        parts = [job.checked for job in jobs]
        try:
            feed = self._joiner.join(parts)
            joined = time.perf_counter_ns()
            outputs = self._session.run(feed)
            ran = time.perf_counter_ns()
            split = self._joiner.split(outputs, parts)
        except Exception as failure:
            if len(jobs) > 1:
                return [self._alone(job.checked.feed, job.queued_ns) for job in jobs]
            return [Outcome({}, failure, start - jobs[0].queued_ns, time.perf_counter_ns() - start)]
        rows = sum(p.rows for p in parts)
        times = (ran - joined, joined - start, time.perf_counter_ns() - ran, rows)
        return [Outcome(own, None, start - job.queued_ns, *times, job is jobs[0]) for job, own in zip(jobs, split)]


def _deliver(post: Post, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> bool:
    """Answer `jobs` on the server's thread; False if that has ended."""
    try:
        post(_answer, jobs, outcomes)
    except RuntimeError:  # the server's loop is closed: nobody waits for this any more
        return False
    return True


def _answer(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    for job, outcome in zip(jobs, outcomes):
        try:
            job.done(outcome)
        except Exception:  # the others of this run still get their answers
            LOGGER.exception("an answer could not be given")


def _too_late(job: Job) -> Outcome:
    waited_ns = time.perf_counter_ns() - job.queued_ns
    error = RequestError(504, f"The request waited {waited_ns / 1e6:.0f} ms, longer than its timeout, and was not run.")
    return Outcome({}, error, waited_ns)


def _give_up(job: Ticket) -> None:
    assert isinstance(job, Job)
    job.done(_too_late(job))
