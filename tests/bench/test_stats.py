from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench import percentile, speedup_of, steady_after
from edgekit.bench.stats import latency_of, student_t95
from edgekit.errors import UsageError


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)), abs=1e-9)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        percentile(values, share)


def test_a_latency_summary_is_ordered_and_counts() -> None:
    got = latency_of([i / 1000 for i in range(1, 1001)])
    assert (got.calls, got.max_s) == (1000, 1.0)
    assert got.p50_s == pytest.approx(0.5005)
    assert got.p99_s == pytest.approx(0.99001)
    assert got.p50_s < got.p90_s < got.p99_s < got.max_s


def noisy(values: np.ndarray, *, spikes: float = 0.02) -> list[float]:
    """With 2 % noise and a few calls five times as slow, as a shared machine has them."""
    rng = np.random.default_rng(1)
    slow = np.where(rng.random(len(values)) < spikes, 5, 1)
    return list(values * rng.normal(1, 0.02, len(values)) * slow)


def test_a_flat_series_is_steady_from_the_start() -> None:
    assert steady_after(noisy(np.full(240, 0.01))) == 0


def test_a_cold_start_is_cut_where_it_ends() -> None:
    values = np.full(240, 0.01)
    values[:50] *= np.linspace(4, 1.3, 50)
    start = steady_after(noisy(values))
    assert start is not None
    assert 40 <= start <= 80


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0.01, 0.02, 240),
        np.concatenate([np.full(180, 0.01), np.full(60, 0.013)]),
        np.where(np.arange(240) // 20 % 2, 0.01, 0.02),
        np.full(10, 0.01),
    ],
    ids=["drift", "throttled at the end", "two speeds", "too few"],
)
def test_a_series_that_does_not_settle_is_not_steady(values: np.ndarray) -> None:
    assert steady_after(noisy(values, spikes=0)) is None


@given(st.lists(st.floats(1e-6, 1e3), min_size=0, max_size=100))
def test_the_cut_leaves_at_least_half(values: list[float]) -> None:
    start = steady_after(values)
    assert start is None or 0 <= start <= len(values) / 2 + 12


def test_a_ratio_is_of_the_same_moment_so_that_noise_cancels() -> None:
    load = [1.0, 3.0, 1.5, 2.0]  # what else the machine does in each round
    fp32 = [[0.010 * x] * 5 for x in load]
    int8 = [[0.004 * x] * 9 for x in load]
    got = speedup_of(fp32, int8)
    assert (got.ratio, got.low, got.high) == pytest.approx((2.5, 2.5, 2.5))
    assert got.rounds == 4


def test_the_spread_of_a_ratio_shows_disagreement() -> None:
    got = speedup_of([[0.01]] * 4, [[0.01], [0.005], [0.01], [0.005]])
    assert got.low == pytest.approx(1)
    assert got.high == pytest.approx(2)


def test_ratios_need_the_same_rounds() -> None:
    with pytest.raises(UsageError, match="same rounds"):
        speedup_of([[1.0]], [])


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (30, 2.042)])
def test_students_t_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_t95(freedom) == pytest.approx(expected, abs=2e-3)
