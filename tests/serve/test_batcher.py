"""Which waiting requests run next: decisions only, so every test sets the time itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.serve.batcher import Batcher, Policy, Ticket
from edgekit.serve.messages import RequestError


def pushed(batcher: Batcher, count: int, *, now_s: float = 0.0, key: object = "k", rows: int = 1) -> list[Ticket]:
    tickets = [Ticket(rows=rows, key=key) for _ in range(count)]
    for ticket in tickets:
        assert batcher.push(ticket, now_s) is None
    return tickets


def test_without_delay_all_that_waits_runs_together_up_to_the_limit() -> None:
    batcher = Batcher(Policy(max_rows=4))
    tickets = pushed(batcher, 6)
    assert batcher.next_batch(0.0) == tickets[:4]
    assert batcher.next_batch(0.0) == tickets[4:]
    assert batcher.next_batch(0.0) == []
    assert len(batcher) == 0
    assert batcher.wake_s() is None


def test_a_delay_waits_for_a_whole_batch_and_no_longer() -> None:
    batcher = Batcher(Policy(max_rows=4, delay_s=0.5))
    early = pushed(batcher, 2)
    assert batcher.next_batch(0.4) == []
    assert batcher.wake_s() == 0.5
    late = pushed(batcher, 1, now_s=0.45)
    assert batcher.next_batch(0.5) == [*early, *late]
    whole = pushed(batcher, 4, now_s=1.0)
    assert batcher.next_batch(1.0) == whole


def test_preferred_sizes_run_at_once_and_the_rest_after_its_delay() -> None:
    batcher = Batcher(Policy(max_rows=8, preferred=(2, 4), delay_s=1.0))
    tickets = pushed(batcher, 5)
    assert batcher.next_batch(0.0) == tickets[:4]
    assert batcher.next_batch(0.0) == []
    assert batcher.next_batch(1.0) == tickets[4:]


def test_only_equal_keys_join_and_a_request_of_many_rows_runs_alone() -> None:
    batcher = Batcher(Policy(max_rows=4))
    a, b, alone = Ticket(key="a"), Ticket(key="b"), Ticket()
    wide, a2 = Ticket(key="a", rows=9), Ticket(key="a", rows=2)
    for ticket in (a, b, alone, wide, a2):
        batcher.push(ticket, 0.0)
    assert [batcher.next_batch(0.0) for _ in range(5)] == [[a, a2], [b], [alone], [wide], []]


def test_higher_priorities_run_first_and_displace_the_lowest_when_full() -> None:
    batcher = Batcher(Policy(levels=3, default_level=2, limit=3))
    low, middle, high = Ticket(priority=3), Ticket(), Ticket(priority=1)
    low_2 = Ticket(priority=3)
    for ticket in (low, low_2, middle):
        assert batcher.push(ticket, 0.0) is None
    assert batcher.push(high, 0.0) is low_2
    assert [batcher.next_batch(0.0) for _ in range(3)] == [[high], [middle], [low]]
    with pytest.raises(RequestError, match="Priority 4 does not exist; this model has 1 to 3"):
        batcher.push(Ticket(priority=4), 0.0)


def test_a_full_queue_says_so() -> None:
    batcher = Batcher(Policy(limit=2))
    pushed(batcher, 2)
    with pytest.raises(RequestError, match="has 2 requests waiting") as caught:
        batcher.push(Ticket(), 0.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_deadlines_end_waiting_and_cut_the_delay_short() -> None:
    batcher = Batcher(Policy(max_rows=4, delay_s=10.0))
    hasty = Ticket(key="k", deadline_s=3.0)
    batcher.push(hasty, 0.0)
    assert batcher.next_batch(0.0) == [hasty]
    for deadline_s in (25.0, 22.0):
        batcher.push(Ticket(key=deadline_s, deadline_s=deadline_s), 1.0)
    assert batcher.expire(21.9) == []
    assert batcher.wake_s() == 11.0
    assert [t.deadline_s for t in batcher.expire(25.0)] == [22.0, 25.0]
    assert len(batcher) == 0


def test_a_cancelled_request_never_runs() -> None:
    batcher = Batcher(Policy(max_rows=4))
    first, second, third = pushed(batcher, 3)
    assert batcher.cancel(second)
    assert not batcher.cancel(second)
    assert batcher.next_batch(0.0) == [first, third]
    assert not batcher.cancel(first)


STEP = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 3), st.integers(1, 6), st.sampled_from(["a", "b", None]), st.booleans()),
    st.tuples(st.just("next")),
    st.tuples(st.just("expire")),
    st.tuples(st.just("cancel"), st.integers(0, 40)),
    st.tuples(st.just("time"), st.floats(0, 2)),
)
POLICIES = st.builds(
    Policy,
    max_rows=st.integers(1, 8),
    preferred=st.lists(st.integers(1, 8), max_size=2).map(tuple),
    delay_s=st.sampled_from([0.0, 0.5, 3.0]),
    limit=st.integers(1, 6),
    levels=st.just(3),
    default_level=st.integers(1, 3),
)


@settings(max_examples=400, deadline=None)
@given(POLICIES, st.lists(STEP, max_size=60))
def test_every_request_leaves_exactly_once(policy: Policy, steps: list[tuple]) -> None:
    """Whatever happens: none lost, none twice, deadlines kept, sizes kept, order within a priority and key kept."""
    batcher, now_s = Batcher(policy), 0.0
    accepted: list[Ticket] = []
    left: list[Ticket] = []
    ran: list[Ticket] = []

    def run(batch: list[Ticket]) -> None:
        assert len({t.key for t in batch}) <= 1
        assert len(batch) <= 1 or (sum(t.rows for t in batch) <= policy.max_rows and batch[0].key is not None)
        left.extend(batch)
        ran.extend(batch)

    for step in steps:
        match step:
            case ("push", priority, rows, key, hurried):
                ticket = Ticket(rows=rows, key=key, priority=priority, deadline_s=now_s + 1 if hurried else None)
                full = len(batcher) >= policy.limit
                try:
                    displaced = batcher.push(ticket, now_s)
                except RequestError:
                    assert full
                    continue
                accepted.append(ticket)
                assert full == (displaced is not None)
                if displaced is not None:
                    level, own = (t.priority or policy.default_level for t in (displaced, ticket))
                    assert level > own
                    left.append(displaced)
            case ("next",):
                run(batcher.next_batch(now_s))
            case ("expire",):
                gone = batcher.expire(now_s)
                assert all(t.deadline_s is not None and t.deadline_s <= now_s for t in gone)
                left.extend(gone)
            case ("cancel", index) if index < len(accepted):
                waited = accepted[index] not in left
                assert batcher.cancel(accepted[index]) == waited
                left += [accepted[index]] if waited else []
            case ("time", seconds):
                now_s += seconds
        assert len(batcher) == len(accepted) - len(left) <= policy.limit
        wake_s = batcher.wake_s()
        assert (wake_s is None) == (len(batcher) == 0)
        if wake_s is not None and wake_s > now_s:
            assert batcher.next_batch(now_s) == [] == batcher.expire(now_s)
    while batcher:
        wake_s = batcher.wake_s()
        assert wake_s is not None
        now_s = max(now_s, wake_s)
        batch, gone = batcher.next_batch(now_s), batcher.expire(now_s)
        assert batch or gone, "it said that something is ready"
        run(batch)
        left.extend(gone)
    assert sorted(map(id, left)) == sorted(map(id, accepted))
    small = [t for t in ran if t.rows < policy.max_rows and t.key is not None]
    for key in ("a", "b"):
        for level in (1, 2, 3):
            orders = [t.order for t in small if t.key == key and (t.priority or policy.default_level) == level]
            assert orders == sorted(orders)
