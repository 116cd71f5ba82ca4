from __future__ import annotations

import threading

import numpy as np
import pytest

from edgekit.errors import BackendError, InputError, UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.runtime.session import Session
from edgekit.runtime.staged import StagedSession, StageRun
from edgekit.tensors import Tensors, TensorSpec

X, H, Y = (TensorSpec(n, "float32", ("batch",)) for n in "xhy")


def add(n: float, takes: TensorSpec = X, gives: TensorSpec = H) -> FakeSession:
    return FakeSession([takes], [gives], lambda feed: {gives.name: feed[takes.name] + n})


def whole(first: FakeSession, second: FakeSession, *, split: bool = False) -> StagedSession:
    runs = [StageRun("a", first, {"x": "x"}, {"h": "h"}), StageRun("b", second, {"h": "h"}, {"y": "y"})]
    return StagedSession(runs, inputs=[X], outputs=[Y], split=split)


def feed(value: float) -> Tensors:
    return {"x": np.full(2, value, np.float32)}


def test_tensors_flow_from_stage_to_stage() -> None:
    with whole(add(1), add(10, H, Y)) as session:
        assert isinstance(session, Session)
        assert set(session.run(feed(3))) == {"y"}
        assert session.run(feed(3))["y"].tolist() == [14, 14]
        assert (session.inputs, session.outputs) == ((X,), (Y,))
        assert session.variant == "a fake, b fake"
        assert session.device == "fake"
        with pytest.raises(InputError, match="'h' is not an input of this model; it has x"):
            session.run({"h": np.zeros(1, np.float32)})


def test_a_tensor_may_be_renamed_taken_twice_and_given_by_any_stage_before() -> None:
    runs = [
        StageRun("a", add(1), {"x": "image"}, {"h": "first"}),
        StageRun("b", add(2), {"x": "image"}, {"h": "second"}),
        StageRun("c", add(3), {"x": "first"}, {"h": "third"}),
    ]
    specs = [TensorSpec(n, "float32", ("batch",)) for n in ("image", "second", "third")]
    with StagedSession(runs, inputs=specs[:1], outputs=specs[1:]) as session:
        out = session.run({"image": np.zeros(1, np.float32)})
    assert {k: float(v[0]) for k, v in out.items()} == {"second": 2, "third": 4}


def test_devices_work_on_several_requests_at_once_and_each_on_one() -> None:
    """While the second stage has request n the first must have n + 1: each waits for the other."""
    count, together = 6, threading.Barrier(2, timeout=20)
    busy = {"a": 0, "b": 0}
    crowded: list[str] = []

    def stage(name: str, gives: str, alone: float) -> FakeSession:
        takes = X if name == "a" else H

        def work(own: Tensors) -> Tensors:
            value = own[takes.name]
            busy[name] += 1
            if busy[name] > 1:
                crowded.append(name)
            if float(value[0]) != alone:  # the first of the first stage and the last of the second have no partner
                together.wait()
            busy[name] -= 1
            return {gives: value}

        return FakeSession([takes], [H if name == "a" else Y], work)

    with whole(stage("a", "h", 0), stage("b", "y", count - 1), split=True) as session:
        assert session.lanes == 2
        outputs = [float(o["y"][0]) for o in session.run_many(feed(i) for i in range(count))]
    assert outputs == list(range(count))
    assert crowded == []


def test_without_split_nobody_waits_for_a_stage() -> None:
    inside = threading.Barrier(2, timeout=20)

    def meet(own: Tensors) -> Tensors:
        inside.wait()
        return {"h": own["x"]}

    with whole(FakeSession([X], [H], meet), add(0, H, Y)) as session:
        assert session.lanes == 1
        assert len(list(session.run_many([feed(1), feed(2)]))) == 2


def test_an_error_of_a_stage_reaches_the_caller_and_the_next_run_works() -> None:
    second = add(1, H, Y)
    with whole(add(1), second, split=True) as session:
        second.fail = BackendError("the GPU is out of memory")
        with pytest.raises(BackendError, match="out of memory"):
            session.run(feed(0))
        second.fail = None
        assert session.run(feed(0))["y"].tolist() == [2, 2]


def test_closing_closes_every_stage_and_twice_is_fine() -> None:
    first, second = add(1), add(1, H, Y)
    session = whole(first, second)
    session.close()
    session.close()
    for closed in (first, second):
        with pytest.raises(BackendError, match="closed"):
            closed.run({s.name: np.zeros(1, np.float32) for s in closed.inputs})
    with pytest.raises(BackendError, match="closed"):
        session.run(feed(0))


def test_what_nothing_gives_is_refused_at_once() -> None:
    run = StageRun("a", add(1), {"x": "q"}, {"h": "h"})
    with pytest.raises(UsageError, match="Input 'x' of stage 'a' takes 'q', which nothing gives"):
        StagedSession([run], inputs=[X], outputs=[H])
    with pytest.raises(UsageError, match="Output 'y' is given by no stage"):
        StagedSession([StageRun("a", add(1), {"x": "x"}, {"h": "h"})], inputs=[X], outputs=[Y])
    with pytest.raises(UsageError, match="at least one stage"):
        StagedSession([], inputs=[X], outputs=[X])
