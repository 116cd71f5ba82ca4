from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.tune.front import Point, allowed, as_good, best, pareto


def point(p99_ms: float, joules: float | None = None, rate: float = 100, **more: object) -> Point:
    fields: dict[str, object] = {"variant": "int8", "batch": 1, "threads": 1, "streams": 1, "calls": 99}
    fields |= {"p50_s": p99_ms / 2e3, "p99_s": p99_ms / 1e3, "samples_per_s": rate}
    fields |= {"joules_per_sample": joules, "uncertainty_j": None if joules is None else 0.1 * joules}
    return Point(**{**fields, **more})  # type: ignore[arg-type]


def test_the_front_trades_latency_for_energy() -> None:
    quick, thrifty, beaten, worse = point(1, 5.0), point(4, 2.0), point(4, 3.0), point(9, 2.0)
    assert pareto([beaten, thrifty, worse, quick]) == [quick, thrifty]
    assert pareto([point(1, rate=10), point(2, rate=30), point(3, rate=20)]) == [point(1, rate=10), point(2, rate=30)]
    assert pareto([]) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_nothing_beats_a_point_of_the_front_and_something_equals_or_beats_the_rest(
    pairs: list[tuple[int, int]],
) -> None:
    points = [point(p99, float(joules)) for p99, joules in pairs]
    front = pareto(points)
    for p in points:
        beaten = [f for f in front if f.p99_s <= p.p99_s and (f.joules_per_sample or 0) <= (p.joules_per_sample or 0)]
        assert beaten
        if p in front:
            assert beaten == [p]


def test_limits_and_objectives() -> None:
    points = [point(1, 5.0, power_w=30.0), point(4, 2.0, power_w=9.0), point(9, 1.0, power_w=8.0), point(5)]
    assert allowed(points, max_p99_s=0.004, max_power_w=None) == points[:2]
    assert allowed(points, max_p99_s=None, max_power_w=10) == points[1:3]  # unknown power is not allowed
    assert best(points, "energy") == points[2]
    assert best(points, "latency") == points[0]
    assert best([], "energy") is best([point(5)], "energy") is None


def test_points_within_the_uncertainty_are_counted() -> None:
    chosen = point(4, 2.0)
    assert as_good([chosen, point(5, 2.2), point(6, 2.5)], chosen) == 1
    assert as_good([point(5), point(6)], point(5)) == 0
