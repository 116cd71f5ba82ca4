"""Signal and noise of one tensor, summed batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgekit.tensors import Array


@dataclass
class NoiseSums:
    """Powers of one tensor and of its error. With `rescaled`, each channel may differ by a factor that fits best.

    Equalisation moves such factors between layers without changing what the network computes; channels lie along the
    second axis (convolutions) or the last one (products), whichever fits better.
    """

    rescaled: bool = False
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    finite: bool = True
    fits: dict[int, Array] = field(default_factory=dict)

    def add(self, got: Array, wanted: Array) -> None:
        """Take one batch of the variant's values and the reference's."""
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            self.finite = False
            return
        sound = np.isfinite(b)
        a, b = np.where(sound, a, 0), np.where(sound, b, 0)
        self.signal += float(np.square(b).sum())
        self.noise += float(np.square(a - b).sum())
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0.0)))
        if self.rescaled and b.ndim > 1:
            for axis in {1, b.ndim - 1}:
                others = tuple(i for i in range(b.ndim) if i != axis)
                sums = np.stack([(x * y).sum(axis=others) for x, y in ((a, b), (a, a), (b, b))])
                if axis not in self.fits or self.fits[axis].shape == sums.shape:
                    self.fits[axis] = self.fits.get(axis, 0) + sums

    @property
    def snr_db(self) -> float | None:
        """10 log10(signal / noise): infinity when equal, None when one is not finite where the other is."""
        if not self.finite:
            return None
        noise = min([self.noise, *(_residual(sums) for sums in self.fits.values())])
        if noise <= 0:
            return math.inf
        return 10 * math.log10(self.signal / noise) if self.signal else -math.inf


def _residual(sums: Array) -> float:
    """Error power that is left when each channel of the variant is multiplied by its least-squares factor."""
    cross, own, wanted = sums
    explained = np.divide(np.square(cross), own, out=np.zeros_like(own), where=(own > 0) & (cross > 0))
    return float(np.maximum(wanted - explained, 0).sum())
