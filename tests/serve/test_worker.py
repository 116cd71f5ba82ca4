"""Who runs the model."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BackendError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.batcher import Policy
from edgekit.serve.messages import RequestError
from edgekit.serve.warmup import Cost, measure
from edgekit.serve.worker import INLINE_S, Outcome, Worker
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


def test_measuring_stops_when_its_time_is_spent() -> None:
    model = session(0.02)
    start = time.monotonic()
    cost = measure(model, ONE, runs=1000, budget_s=0.05)
    assert 0.02 <= cost.latency_s < time.monotonic() - start
    assert model.calls < 10
    assert cost.of({"x": np.ones(3, np.float32)}) == pytest.approx(3 * cost.latency_s)
    assert cost.of({"x": np.ones(0, np.float32)}) == cost.latency_s
