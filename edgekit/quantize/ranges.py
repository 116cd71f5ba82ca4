"""Ranges of activations: pure functions from a histogram to the interval that eight bits should cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from edgekit.tensors import Array

Method: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
"""Share of values, in percent, that the percentile method keeps inside its range."""

BINS = 2048
_SHRINKS = np.linspace(1.0, 0.3, 57)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a tensor's values in `BINS` equal bins over [low, high], the values seen at both ends."""

    low: float
    high: float
    counts: Array

    @property
    def centres(self) -> Array:
        """Middle of each bin."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return (edges[:-1] + edges[1:]) / 2


@dataclass(frozen=True, slots=True)
class Range:
    """The interval [low, high] that is quantised; it contains zero, so that zero is exact."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """From one end to the other."""
        return self.high - self.low

    @property
    def peak(self) -> float:
        """Largest magnitude: what a symmetric scale covers."""
        return max(-self.low, self.high)


def range_of(histogram: Histogram, method: Method, *, symmetric: bool = False, slope: float = 1.0) -> Range:
    """The range that `method` takes from `histogram`.

    minmax covers all; percentile drops the outermost 0.01 %; entropy keeps the quantised distribution closest
    (Kullback-Leibler); mse makes the squared rounding and clipping error smallest, as it is after a LeakyRelu of
    `slope`, which errors of negative values pass.
    """
    low, high = min(0.0, histogram.low), max(0.0, histogram.high)
    if symmetric:
        high = max(-low, high)
        low = -high
    if method == "minmax" or high == low or histogram.counts.sum() == 0:
        return Range(low, high)
    if method == "percentile":
        return _percentile(histogram, low, high, symmetric)
    if method == "entropy":
        return _entropy(histogram, low, high, symmetric)
    return _mse(histogram, low, high, symmetric, slope)


def _percentile(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    values, counts = histogram.centres, histogram.counts
    tail = (100 - PERCENTILE) / 100
    if symmetric:
        order = np.argsort(np.abs(values))
        total = np.cumsum(counts[order]) / counts.sum()
        peak = float(np.abs(values[order])[int(np.searchsorted(total, 1 - tail))])
        return Range(-peak, peak)
    total = np.cumsum(counts) / counts.sum()
    step = (histogram.high - histogram.low) / len(counts)
    first = float(values[int(np.searchsorted(total, tail / 2))]) - step / 2
    last = float(values[min(len(values) - 1, int(np.searchsorted(total, 1 - tail / 2)))]) + step / 2
    return Range(max(low, min(0.0, first)), min(high, max(0.0, last)))


def _mse(histogram: Histogram, low: float, high: float, symmetric: bool, slope: float) -> Range:
    values, counts = histogram.centres, histogram.counts.astype(np.float64)
    counts = np.where(values < 0, counts * slope**2, counts)
    shrinks = _SHRINKS if slope == 1 else np.linspace(1.0, 0.02, 99)

    moments = [np.concatenate([[0.0], np.cumsum(counts * values**k)]) for k in range(3)]

    def outside(k: int, end: float, *, above: bool) -> float:
        """Squared distance from `end` of the values in the bins before `k`, or from `k` on."""
        n, first, second = (m[-1] - m[k] if above else m[k] for m in moments)
        return float(second - 2 * end * first + end * end * n)

    def cost(lo: float, hi: float) -> float:
        scale = (hi - lo) / (254 if symmetric else 255)
        first, last = np.searchsorted(values, (lo, hi))
        clipped = outside(int(first), lo, above=False) + outside(int(last), hi, above=True)
        # inside the range the rounding error is uniform: step^2 / 12, whatever the bin's width
        return clipped + float(moments[0][-1]) * scale**2 / 12

    best = (cost(low, high), low, high)
    for shrink in _SHRINKS[1:]:
        best = min(best, (cost(low * shrink, high * shrink), low * shrink, high * shrink))
    if not symmetric and low < 0 < high:  # the two ends clip apart
        for _ in range(2):
            _, lo, hi = best
            best = min(best, *((cost(lo * s, hi), lo * s, hi) for s in shrinks))
            _, lo, hi = best
            best = min(best, *((cost(lo, hi * s), lo, hi * s) for s in _SHRINKS))
    return Range(float(best[1]), float(best[2]))


def _entropy(histogram: Histogram, low: float, high: float, symmetric: bool) -> Range:
    values, counts = np.abs(histogram.centres), histogram.counts.astype(np.float64)
    peak = max(-low, high)
    folded, _ = np.histogram(values, bins=BINS, range=(0, peak), weights=counts)
    levels = 128 if symmetric or low < 0 < high else 256
    # the atom at zero (ReLU) says nothing about where to clip
    folded[0] = min(folded[0], folded[1:].max(initial=0.0))
    best = (np.inf, 1.0)
    for stop in range(levels, BINS + 1, 16):
        best = min(best, (_divergence(folded, stop, levels), stop / BINS))
    return Range(float(max(low, -peak * best[1])), float(min(high, peak * best[1])))


def _divergence(counts: Array, stop: int, levels: int) -> float:
    wanted = counts[:stop].copy()
    wanted[-1] += counts[stop:].sum()
    if wanted.sum() == 0:
        return float("inf")
    group = np.arange(stop) * levels // stop
    filled = counts[:stop] > 0
    sums = np.bincount(group, weights=counts[:stop], minlength=levels)
    sizes = np.bincount(group, weights=filled, minlength=levels)
    given = np.where(filled, (sums / np.maximum(sizes, 1))[group], 0.0)
    if given.sum() == 0:
        return float("inf")
    p, q = wanted / wanted.sum(), given / given.sum()
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-9))).sum())
