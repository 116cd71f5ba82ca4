from __future__ import annotations

import threading

import numpy as np
import pytest

from edgekit.errors import BackendError, UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.runtime.parallel import ParallelSession
from edgekit.runtime.session import Session
from edgekit.tensors import Tensors, TensorSpec

SPEC = TensorSpec("x", "float32", ("batch",))
ONE = {"x": np.zeros(1, np.float32)}


def fake(add: float = 0.0, *, spec: TensorSpec = SPEC) -> FakeSession:
    return FakeSession([spec], [spec], lambda feed: {"x": feed["x"] + add})


def test_runs_take_turns_over_idle_devices() -> None:
    with ParallelSession([fake(1), fake(2), fake(3)]) as front:
        assert isinstance(front, Session)
        assert [float(front.run(ONE)["x"][0]) for _ in range(5)] == [1, 2, 3, 1, 2]
        assert front.inputs == front.outputs == (SPEC,)
        assert front.variant == "fake"
        assert front.device == "fake; fake; fake"


def test_a_busy_device_is_passed_over() -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(feed: Tensors) -> Tensors:
        inside.set()
        assert go.wait(20)
        return feed

    quick = fake()
    with ParallelSession([FakeSession([SPEC], [SPEC], slow), quick]) as front:
        thread = threading.Thread(target=front.run, args=(ONE,))
        thread.start()
        assert inside.wait(20)
        for _ in range(4):
            front.run(ONE)
        go.set()
        thread.join()
    assert quick.calls == 4


def test_a_failure_is_the_callers_and_frees_the_device() -> None:
    bad, good = fake(), fake()
    with ParallelSession([bad, good]) as front:
        bad.fail = BackendError("lost")
        with pytest.raises(BackendError, match="lost"):
            front.run(ONE)
        bad.fail = None
        front.run(ONE)
        front.run(ONE)
    assert (bad.calls, good.calls) == (2, 1)


def test_closing_closes_all() -> None:
    sessions = [fake(), fake()]
    front = ParallelSession(sessions)
    front.close()
    front.close()
    for session in (front, *sessions):
        with pytest.raises(BackendError, match="closed"):
            session.run(ONE)


def test_sessions_of_different_models_are_refused() -> None:
    with pytest.raises(UsageError, match="different inputs or outputs"):
        ParallelSession([fake(), fake(spec=TensorSpec("y", "float32", ("batch",)))])
    with pytest.raises(UsageError, match="at least one session"):
        ParallelSession([])
