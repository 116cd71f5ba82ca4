from __future__ import annotations

import numpy as np
import pytest

from edgekit.quantize.ranges import BINS, METHODS, Histogram, Method, Range, range_of


def histogram(values: np.ndarray) -> Histogram:
    counts, _ = np.histogram(values, bins=BINS, range=(float(values.min()), float(values.max())))
    return Histogram(float(values.min()), float(values.max()), counts)


def noise(values: np.ndarray, span: Range) -> float:
    step = (span.high - span.low) / 255
    back = np.clip(np.rint((values - span.low) / step), 0, 255) * step + span.low
    return float(np.mean((values - back) ** 2))


NORMAL = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
OUTLIER = np.append(NORMAL, np.float32(200))


def test_minmax_covers_all_values() -> None:
    assert range_of(histogram(OUTLIER), "minmax") == Range(float(NORMAL.min()), 200.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_range_contains_zero(method: Method) -> None:
    span = range_of(histogram(np.abs(NORMAL) + 3), method)
    assert span.low == 0
    assert 3 < span.high <= 8


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_one_outlier_does_not_cost_the_resolution_of_all_others(method: Method) -> None:
    span = range_of(histogram(OUTLIER), method)
    assert span.high < 190
    assert noise(NORMAL, span) < noise(NORMAL, range_of(histogram(OUTLIER), "minmax"))


def test_mse_is_the_best_of_all_on_the_values_it_saw() -> None:
    seen = histogram(OUTLIER)
    errors = {m: noise(OUTLIER, range_of(seen, m)) for m in METHODS}
    assert errors["mse"] <= min(errors.values()) * 1.05


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_ranges_are_symmetric(method: Method) -> None:
    span = range_of(histogram(NORMAL * np.where(NORMAL > 0, 3, 1)), method, symmetric=True)
    assert span.low == -span.high
    assert span.peak > 3


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_tensor_has_a_range(method: Method) -> None:
    constant = Histogram(2.5, 2.5, np.zeros(BINS, np.int64))
    assert range_of(constant, method) == Range(0.0, 2.5)


def test_errors_of_negative_values_count_as_a_leaky_relu_lets_them_through() -> None:
    values = np.random.default_rng(0).normal(-4, 4, 20_000).astype(np.float32)

    def error(span: Range) -> float:
        step = span.width / 255
        rounded = np.clip(np.rint(values / step) * step, span.low, span.high)
        leaky = [np.where(v < 0, 0.1 * v, v) for v in (values, rounded)]
        return float(((leaky[0] - leaky[1]) ** 2).mean())

    seen = histogram(values)
    plain, aware = range_of(seen, "mse"), range_of(seen, "mse", slope=0.1)
    assert aware.low > plain.low
    assert error(aware) < 0.9 * error(plain)
