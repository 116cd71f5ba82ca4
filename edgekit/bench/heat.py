"""How a machine warms up under a constant load: time constant and final temperature, and whether it has got there.

Pure: times and temperatures in, figures out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edgekit.bench.stats import student_t95
from edgekit.tensors import Array

FEWEST = 12
"""Readings below which nothing is fitted."""
FLAT_C = 0.5
"""A temperature is steady when its trend over the last third of the run is less than this."""
_GRID = 300
_LONGEST = 5.0
"""Time constants are looked for up to this many times the duration; one that may be longer is not resolved."""


class Heating(msgspec.Struct, frozen=True, kw_only=True):
    """T(t) = steady - (steady - start) exp(-t / tau), fitted to one zone; each figure holds ± its `_error` in 95 %.

    `readings` over `duration_s` were fitted, `rms_c` is what they scatter around the curve.
    """

    zone: str
    start_c: float
    steady_c: float
    steady_error_c: float
    tau_s: float
    tau_error_s: float
    readings: int
    duration_s: float
    rms_c: float

    def at(self, t_s: float) -> float:
        """The curve, `t_s` seconds after the load began."""
        return self.steady_c - (self.steady_c - self.start_c) * math.exp(-t_s / self.tau_s)


def fit_heating(zone: str, times_s: Sequence[float], temps_c: Sequence[float]) -> Heating | str:
    """The curve through the readings of `zone`, or the sentence why there is none. Times count from the load's start.

    For each time constant of a grid the other two figures follow by least squares; the best has the smallest sum of
    squares, and those that the data do not exclude (profile likelihood) span the uncertainty. Neighbouring residuals
    are alike, so the number of readings that count is n (1 - r) / (1 + r), with their correlation r.
    """
    if len(times_s) < FEWEST:
        return f"{zone}: {len(times_s)} readings, {FEWEST} are needed"
    t, y = np.asarray(times_s, float), np.asarray(temps_c, float)
    duration = float(t[-1] - t[0])
    step = _resolution(y)
    if float(y.max() - y.min()) < max(1.0, 3 * step):
        return f"{zone}: the temperature moved by {y.max() - y.min():.1f} °C only, too little for a time constant"
    taus = np.geomspace(2 * duration / len(t), _LONGEST * duration, _GRID)
    for _ in range(2):  # a coarse grid over all, then a fine one over what the data do not exclude
        fits = [_at_tau(t, y, tau) for tau in taus]
        squares = np.array([f[2] for f in fits])
        best = int(squares.argmin())
        residual = y - fits[best][0] - fits[best][1] * np.exp(-t / taus[best])
        count = max(5.0, len(t) * _share_that_counts(residual))
        variance = max(float(squares[best]) / (len(t) - 3), step**2 / 12)
        freedom = max(1, int(count) - 3)
        allowed = student_t95(freedom) ** 2 * variance * len(t) / count
        inside = np.flatnonzero(squares <= squares[best] + allowed)
        if taus[inside[-1]] >= _LONGEST * duration:
            return f"{zone}: still rises too evenly after {duration:.0f} s for its time constant to be told; run longer"
        span = taus[max(0, inside[0] - 1)], taus[min(_GRID - 1, inside[-1] + 1)]
        taus, searched = np.geomspace(*span, _GRID), taus
    taus = searched
    reach = student_t95(freedom) * math.sqrt(variance * len(t) / count)
    low = min(fits[i][0] - reach * fits[i][3] for i in inside)
    high = max(fits[i][0] + reach * fits[i][3] for i in inside)
    steady, tau = fits[best][0], float(taus[best])
    return Heating(
        zone=zone,
        start_c=steady + fits[best][1],
        steady_c=steady,
        steady_error_c=max(high - steady, steady - low),
        tau_s=tau,
        tau_error_s=max(float(taus[inside[-1]]) - tau, tau - float(taus[inside[0]])),
        readings=len(t),
        duration_s=duration,
        rms_c=float(np.sqrt(np.mean(residual**2))),
    )


def is_flat(times_s: Sequence[float], temps_c: Sequence[float], window_s: float) -> bool:
    """Whether the straight trend of the last `window_s` seconds changes the temperature by less than `FLAT_C`.

    Sensors that show whole degrees may flicker between two: they are given half a step more.
    """
    t, y = np.asarray(times_s, float), np.asarray(temps_c, float)
    last = t >= t[-1] - window_s
    if last.sum() < 4:
        return False
    slope = float(np.polyfit(t[last] - t[-1], y[last], 1)[0])
    return abs(slope) * window_s < FLAT_C + _resolution(y) / 2


def _at_tau(t: Array, y: Array, tau: float) -> tuple[float, float, float, float]:
    """Final temperature, the (negative) rest at the start, the sum of squares, and the first's error per unit noise."""
    basis = np.stack([np.ones_like(t), np.exp(-t / tau)], axis=1)
    normal = np.linalg.pinv(basis.T @ basis)
    steady, rest = normal @ (basis.T @ y)
    squares = float(np.sum((y - basis @ np.array([steady, rest])) ** 2))
    return float(steady), float(rest), squares, math.sqrt(max(0.0, float(normal[0, 0])))


def _share_that_counts(residual: Array) -> float:
    power = float(np.sum(residual**2))
    if power == 0:
        return 1.0
    r = float(np.sum(residual[1:] * residual[:-1])) / power
    r = min(0.99, max(0.0, r))
    return (1 - r) / (1 + r)


def _resolution(y: Array) -> float:
    """The sensor's step: the smallest difference between values that it showed."""
    values = np.unique(np.round(y, 3))
    return float(np.diff(values).min()) if len(values) > 1 else 0.0
