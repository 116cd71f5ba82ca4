from __future__ import annotations

import numpy as np

from edgekit.bench.measure import FEWEST_ROUNDS, Contender, interleaved, warm_up
from edgekit.bench.stats import speedup_of
from edgekit.runtime.fake import FakeSession
from edgekit.tensors import Tensors, TensorSpec


def contender(latency_s: float, order: list[str] | None = None, name: str = "a") -> Contender:
    """A session that sleeps, and notes its turn."""

    def work(feed: Tensors) -> Tensors:
        if order is not None:
            order.append(name)
        return {"y": feed["x"]}

    spec = TensorSpec("x", "float32", ("batch",))
    session = FakeSession([spec], [TensorSpec("y", "float32", ("batch",))], work, latency_s=latency_s)
    return Contender(name, session, [{"x": np.zeros(1, np.float32)}, {"x": np.ones(1, np.float32)}])


def test_a_slice_makes_at_least_the_calls_asked_for() -> None:
    one = contender(0.001)
    assert len(one.slice(0, at_least=4)) == 4
    assert min(one.slice(0.02)) >= 0.001


def test_feeds_are_used_in_turn() -> None:
    seen: list[float] = []
    spec = TensorSpec("x", "float32", ("batch",))

    def work(feed: Tensors) -> Tensors:
        seen.append(float(feed["x"][0]))
        return feed

    Contender("a", FakeSession([spec], [spec], work), [{"x": np.array([v], np.float32)} for v in (1, 2)]).slice(
        0, at_least=3
    )
    assert seen == [1, 2, 1]


def test_warm_up_ends_when_steady_and_says_when_it_never_was() -> None:
    assert warm_up(contender(0.002), limit_s=2).steady
    swinging = contender(0)
    calls = 0

    def work(feed: Tensors) -> Tensors:
        nonlocal calls
        calls += 1
        swinging.session.latency_s = 0.001 * calls  # slower and slower
        return {"y": feed["x"]}

    swinging.session._function = work
    result = warm_up(swinging, limit_s=0.3)
    assert not result.steady
    assert result.calls > 5
    assert result.duration_s >= 0.3


def test_contenders_take_turns_and_every_other_round_goes_backwards() -> None:
    order: list[str] = []
    rounds = interleaved([contender(0.001, order, "a"), contender(0.001, order, "b")], seconds=0.2)
    assert [len(r) for r in rounds] == [FEWEST_ROUNDS, FEWEST_ROUNDS]
    turns = "".join(x for i, x in enumerate(order) if i == 0 or order[i - 1] != x)
    assert turns == "abababa"  # a call of each, then ab ba ab ba


def test_a_slower_contender_shows_its_ratio() -> None:
    fast, slow = interleaved([contender(0.002, name="fast"), contender(0.006, name="slow")], seconds=0.2)
    assert speedup_of(fast, slow).ratio < 1
