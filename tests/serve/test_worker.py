"""Who runs the model."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BackendError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.batcher import Policy
from edgekit.serve.messages import RequestError
from edgekit.serve.warmup import INLINE_S, Cost
from edgekit.serve.worker import PROBE, Outcome, Worker
from edgekit.tensors import Tensors, TensorSpec

SPECS = ([TensorSpec("x", "float32", ("n",))], [TensorSpec("thread", "int64", ())])
ONE = {"x": np.ones(1, np.float32)}


def where(_feed: Tensors) -> Tensors:
    return {"thread": np.array(threading.get_ident())}


def session(latency_s: float = 0.0) -> FakeSession:
    return FakeSession(*SPECS, where, latency_s=latency_s)


class Inbox:
    """What a server's thread is to a worker: calls arrive, and are made there."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue()
        self.outcomes: list[Outcome] = []

    def post(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.calls.put((function, arguments))

    def wait(self) -> Outcome:
        function, arguments = self.calls.get(timeout=10)
        function(*arguments)
        return self.outcomes[-1]

    def turn(self) -> None:
        """Make one call; a call that it posts waits for the next turn."""
        function, arguments = self.calls.get(timeout=10)
        function(*arguments)


def test_a_quick_model_runs_on_the_thread_that_asks() -> None:
    inbox = Inbox()
    worker = Worker(session(), cost=Cost(INLINE_S / 2, 4))
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert inbox.outcomes[0].outputs["thread"] == threading.get_ident()
    assert worker.inline
    worker.close()


@pytest.mark.parametrize("cost", [None, Cost(INLINE_S * 2, 4)])
def test_a_slow_or_unmeasured_model_runs_on_its_own_thread(cost: Cost | None) -> None:
    inbox = Inbox()
    worker = Worker(session(0.01), cost=cost)
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert not inbox.outcomes
    outcome = inbox.wait()
    assert outcome.outputs["thread"] != threading.get_ident()
    assert outcome.run_ns >= 10_000_000
    assert inbox.wait().queue_ns > 0
    worker.close()


def test_a_large_batch_for_a_quick_model_leaves_the_asking_thread() -> None:
    inbox = Inbox()
    worker = Worker(session(), cost=Cost(INLINE_S / 2, 4))
    worker.submit({"x": np.ones(1000, np.float32)}, inbox.outcomes.append, inbox.post)
    assert inbox.wait().outputs["thread"] != threading.get_ident()
    worker.close()


@pytest.mark.parametrize("cost", [None, Cost(0.0, 4)])
@pytest.mark.parametrize("failure", [BackendError("it broke"), ZeroDivisionError("of the backend")])
def test_what_the_runtime_raises_is_an_outcome(cost: Cost | None, failure: Exception) -> None:
    inbox = Inbox()
    model = session()
    worker = Worker(model, cost=cost)
    model.fail = failure
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert (inbox.outcomes[0] if cost else inbox.wait()).error is failure
    model.fail = None
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert (inbox.outcomes[-1] if cost else inbox.wait()).error is None
    worker.close()


def test_a_full_queue_refuses_at_once() -> None:
    inbox = Inbox()
    worker = Worker(session(0.2), cost=None, policy=Policy(limit=2))
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    time.sleep(0.05)  # taken by the worker's thread
    for _ in range(2):
        worker.submit(ONE, inbox.outcomes.append, inbox.post)
    with pytest.raises(RequestError) as caught:
        worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    worker.close()


def test_closing_finishes_what_waits() -> None:
    inbox = Inbox()
    model = session(0.02)
    worker = Worker(model, cost=None)
    for _ in range(3):
        worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert worker.close()
    assert model.calls == inbox.calls.qsize() == 3
    with pytest.raises(RequestError, match="being replaced or unloaded"):
        worker.submit(ONE, inbox.outcomes.append, inbox.post)


def batched(latency_s: float = 0.0, function: Callable[[Tensors], Tensors] | None = None) -> FakeSession:
    """y = 2 x, and how many rows its runs had."""

    def run(feed: Tensors) -> Tensors:
        return {"y": feed["x"] * 2, "rows": np.full(len(feed["x"]), len(feed["x"]))}

    specs = (
        [TensorSpec("x", "float32", ("n",))],
        [TensorSpec("y", "float32", ("n",)), TensorSpec("rows", "int64", ("n",))],
    )
    return FakeSession(*specs, function or run, latency_s=latency_s)


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32)}


def test_what_waits_while_the_model_is_busy_runs_together() -> None:
    inbox = Inbox()
    worker = Worker(batched(0.05), cost=None, policy=Policy(max_rows=4))
    outcomes: dict[int, Outcome] = {}
    for i in range(7):
        worker.submit(rows(i), partial(outcomes.__setitem__, i), inbox.post)
    while len(outcomes) < 7:
        inbox.turn()
    assert [outcomes[i].outputs["y"].tolist() for i in range(7)] == [[2.0 * i] for i in range(7)]
    assert max(o.outputs["rows"][0] for o in outcomes.values()) == 4
    assert sum(o.first for o in outcomes.values()) < 7
    assert all(o.rows == o.outputs["rows"][0] for o in outcomes.values())
    worker.close()


def test_one_request_at_fault_does_not_fail_those_beside_it() -> None:
    def run(feed: Tensors) -> Tensors:
        if (feed["x"] < 0).any():
            raise BackendError("negative")
        return {"y": feed["x"], "rows": feed["x"]}

    inbox = Inbox()
    worker = Worker(batched(0.05, run), cost=None, policy=Policy(max_rows=8))
    outcomes: dict[int, Outcome] = {}
    for i, value in enumerate((0, 1, -2, 3)):
        worker.submit(rows(value), partial(outcomes.__setitem__, i), inbox.post)
    while len(outcomes) < 4:
        inbox.turn()
    assert [outcomes[i].error is None for i in range(4)] == [True, True, False, True]
    assert str(outcomes[2].error) == "negative"
    worker.close()


def test_quick_requests_of_one_turn_of_the_loop_are_joined() -> None:
    inbox = Inbox()
    worker = Worker(batched(), cost=Cost(1e-6, 4), policy=Policy(max_rows=8))
    outcomes: list[Outcome] = []
    for _ in range(PROBE):  # one client alone: answered at once, but for the one that looks for company
        worker.submit(rows(1), outcomes.append, inbox.post, soon=inbox.post)
    assert len(outcomes) == PROBE - 1
    for i in range(4):
        worker.submit(rows(i), outcomes.append, inbox.post, soon=inbox.post)
    inbox.turn()
    assert [o.outputs["rows"][0] for o in outcomes[-5:]] == [5] * 5
    for i in range(12):
        assert worker.submit(rows(i), outcomes.append, inbox.post, soon=inbox.post) is not None
    inbox.turn()
    assert [o.outputs["rows"][0] for o in outcomes[-12:]] == [6] * 12
    assert [o.outputs["y"][0] for o in outcomes[-12:]] == [2 * i for i in range(12)]
    worker.submit(rows(1), outcomes.append, inbox.post, soon=inbox.post)
    inbox.turn()
    assert worker.submit(rows(1), outcomes.append, inbox.post, soon=inbox.post) is None  # alone again
    worker.close()


def test_a_turn_of_requests_that_takes_long_goes_to_the_thread() -> None:
    inbox = Inbox()
    worker = Worker(batched(), cost=Cost(INLINE_S / 2, 4), policy=Policy(max_rows=8))
    outcomes: list[Outcome] = []
    for _ in range(PROBE + 5):
        worker.submit(rows(1), outcomes.append, inbox.post, soon=inbox.post)
    inbox.turn()
    while len(outcomes) < PROBE + 5:
        inbox.turn()
    assert all(o.error is None for o in outcomes)
    assert len(worker._threads) == 1
    worker.close()


def test_a_request_that_waits_too_long_is_given_up() -> None:
    inbox = Inbox()
    worker = Worker(session(0.2), cost=None)
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    time.sleep(0.05)
    worker.submit(ONE, inbox.outcomes.append, inbox.post, timeout_s=0.05)
    time.sleep(0.07)
    worker.sweep()  # the only thread is busy still
    (outcome,) = inbox.outcomes
    assert isinstance(outcome.error, RequestError)
    assert outcome.error.status == 504
    assert "longer than its timeout" in str(outcome.error)
    assert inbox.wait().error is None
    worker.close()


def test_a_cancelled_request_is_not_run_and_not_answered() -> None:
    inbox = Inbox()
    model = session(0.1)
    worker = Worker(model, cost=None)
    first = worker.submit(ONE, inbox.outcomes.append, inbox.post)
    time.sleep(0.03)
    second = worker.submit(ONE, inbox.outcomes.append, inbox.post)
    assert first is not None
    assert second is not None
    assert not worker.cancel(first)
    assert worker.cancel(second)
    inbox.wait()
    assert worker.close()
    assert model.calls == len(inbox.outcomes) == 1


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    inbox = Inbox()
    worker = Worker(session(0.1), cost=None, policy=Policy(limit=1, levels=2))
    worker.submit(ONE, inbox.outcomes.append, inbox.post)
    time.sleep(0.03)
    worker.submit(ONE, inbox.outcomes.append, inbox.post, priority=2)
    worker.submit(ONE, inbox.outcomes.append, inbox.post, priority=1)
    (outcome,) = inbox.outcomes
    assert isinstance(outcome.error, RequestError)
    assert (outcome.error.status, outcome.error.retry_after_s) == (503, 1)
    assert "higher priority" in str(outcome.error)
    assert inbox.wait().error is inbox.wait().error is None
    worker.close()


def test_instances_run_at_one_time() -> None:
    inbox = Inbox()
    worker = Worker(session(0.4), cost=None, instances=3)
    start = time.monotonic()
    for _ in range(3):
        worker.submit(ONE, inbox.outcomes.append, inbox.post)
    threads = {int(inbox.wait().outputs["thread"]) for _ in range(3)}
    assert len(threads) == 3
    assert time.monotonic() - start < 1.1
    worker.close()
