"""What a series of latencies says: percentiles, steady state, ratios. Pure: lists of seconds in, figures out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from edgekit.errors import UsageError

BLOCK_TOLERANCE = 0.10
"""In steady state the median of every block of calls is within this share of the settled median."""
DRIFT_TOLERANCE = 0.05
"""… and the medians of the third and the last quarter within this share of each other."""
_BLOCKS = 12
FEWEST = 24
"""Calls below which nothing can be said about steady state."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of `calls` latencies in seconds. With fewer than 100 calls p99 says little more than the maximum."""

    calls: int
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    mean_s: float


class SpeedUp(msgspec.Struct, frozen=True, kw_only=True):
    """How many times faster than the reference: the median of `rounds` ratios, and their quartiles.

    Each ratio compares medians of the same moment, so that what else the machine does cancels out.
    """

    ratio: float
    low: float
    high: float
    rounds: int


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, interpolated linearly between ranks.

    Raises:
        UsageError: no values, or a share outside 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise UsageError(f"A percentile needs values and a share from 0 to 1, got {len(values)} values and {share}.")
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student_t95(freedom: int) -> float:
    """Half-width of Student's two-sided 95 % interval in standard errors, for `freedom` of 1 or more.

    Beyond ten by the first terms of Fisher's expansion (Abramowitz and Stegun 26.7.5), within 0.001.
    """
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def latency_of(values_s: Sequence[float]) -> Latency:
    """The percentiles of a series of latencies. Raises UsageError if it is empty."""
    return Latency(
        calls=len(values_s),
        p50_s=percentile(values_s, 0.5),
        p90_s=percentile(values_s, 0.9),
        p99_s=percentile(values_s, 0.99),
        max_s=percentile(values_s, 1),
        mean_s=statistics.fmean(values_s),
    )


def steady_after(values_s: Sequence[float]) -> int | None:
    """How many calls to leave out until the series is steady, or None if it does not settle.

    The series is cut into blocks; from some block on, and for at least its second half, every block's median stays
    near the settled one and no drift is left. Single slow calls do not matter, as medians ignore them.
    """
    if len(values_s) < FEWEST:
        return None
    size = len(values_s) // _BLOCKS
    first = len(values_s) - size * _BLOCKS  # what does not fill a block is left out at the cold end
    blocks = [statistics.median(values_s[first + i * size : first + (i + 1) * size]) for i in range(_BLOCKS)]
    settled = statistics.median(blocks[_BLOCKS // 2 :])
    third = statistics.median(blocks[_BLOCKS // 2 : _BLOCKS * 3 // 4])
    last = statistics.median(blocks[_BLOCKS * 3 // 4 :])
    if abs(last - third) > DRIFT_TOLERANCE * settled:
        return None
    start = _BLOCKS
    while start > 0 and abs(blocks[start - 1] - settled) <= BLOCK_TOLERANCE * settled:
        start -= 1
    if start > _BLOCKS // 2:
        return None
    return 0 if start == 0 else first + start * size


def speedup_of(reference_s: Sequence[Sequence[float]], variant_s: Sequence[Sequence[float]]) -> SpeedUp:
    """Ratio of medians round by round: both hold one list of latencies a round, measured next to each other.

    Raises:
        UsageError: no rounds, or not the same number of them.
    """
    if len(reference_s) != len(variant_s) or not reference_s:
        raise UsageError(f"Ratios need the same rounds of both, got {len(reference_s)} and {len(variant_s)}.")
    ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(reference_s, variant_s)]
    return SpeedUp(
        ratio=percentile(ratios, 0.5), low=percentile(ratios, 0.25), high=percentile(ratios, 0.75), rounds=len(ratios)
    )
