from __future__ import annotations

import numpy as np
import pytest

from edgekit.bench.gate import interval, parse_limits
from edgekit.errors import UsageError


def test_limits_are_shares_by_metric() -> None:
    assert parse_limits("energy>+5%, P99>10 %,throughput<-2.5%") == {"energy": 0.05, "p99": 0.1, "throughput": -0.025}
    with pytest.raises(UsageError, match="is not usable"):
        parse_limits("")


@pytest.mark.parametrize(("trials", "middle"), [(5, np.mean), (10, np.median)])
def test_the_interval_holds_the_truth_in_95_percent_of_cases(trials: int, middle: object) -> None:
    """Trials that scatter by 8 %; the new ones are truly 10 % slower."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        old, new = (list(scale * rng.lognormal(0, 0.08, trials)) for scale in (1.0, 1.1))
        low, high = interval((old, [0.0] * trials), (new, [0.0] * trials), middle, rng)  # type: ignore[arg-type]
        assert low <= high
        held += low <= 0.1 <= high
    assert held / 300 > 0.92


def test_the_error_of_each_measurement_is_in_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = [1.0] * 6
    low, high = interval((values, [0.0] * 6), (values, [0.0] * 6), np.mean, rng)
    assert low == high == 0
    low, high = interval((values, [0.05] * 6), (values, [0.05] * 6), np.mean, rng)
    assert low < -0.04
    assert high > 0.04
