"""Weights in eight bits: pure functions from float32 to int8 and scales.

ONNX Runtime multiplies U8 by S8 with an instruction that adds two neighbouring products in 16 bits on CPUs
without VNNI (`vpmaddubsw`), and that sum saturates. Here scales are chosen so that it cannot, whatever the
activations are: for neighbours a, b along the depth of the product, |a| + |b| of one sign stays within 128
(255 x 128 < 2^15). That costs a fraction of the bit that seven-bit weights cost, and one file is right on every CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.tensors import Array

LEVELS = 127
"""Largest magnitude of a symmetric eight-bit weight."""

_HALF_NORMAL = 2.0**-14
"""Smallest FP16 value with all its bits."""

_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class QuantWeight:
    """`values` int8, `scale` one for each channel along `axis` (or a single one when axis is None)."""

    values: Array
    scale: Array
    axis: int | None

    def dequantized(self) -> Array:
        """The float32 weights that these stand for."""
        return (self.values.astype(np.float32) * self._spread()).astype(np.float32)

    def _spread(self) -> Array:
        if self.axis is None:
            return self.scale
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def channel_scales(weight: Array, axis: int, *, pair_safe: bool) -> Array:
    """Symmetric scale of each channel along `axis`; `pair_safe` keeps 16-bit sums of two products in range.

    Conv weights (O, I, ...) are taken as their product's depth runs (kernel position, input channel), and also as
    they lie in memory: runtimes use either.
    """
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1)
    peak = np.abs(flat).max(axis=1)
    if pair_safe:
        peak = np.maximum(peak, _pair_peak(flat))
        if rows.ndim > 2:
            peak = np.maximum(peak, _pair_peak(np.moveaxis(rows, 1, -1).reshape(len(rows), -1)))
    return np.asarray(np.maximum(peak / LEVELS, _TINY), np.float32)


def trt_scales(weight: Array, axis: int) -> Array:
    """Scale of each channel for TensorRT's form, which has them in FP16 where it can."""
    return representable(channel_scales(weight, axis, pair_safe=False))


def representable(scale: Array) -> Array:
    """`scale` (float32, above 0) raised to the next value that FP16 has; left alone where FP16 has none near."""
    near = np.clip(scale, _HALF_NORMAL, 32768).astype(np.float16)
    up = np.where(near.astype(np.float32) < scale, np.nextafter(near, np.float16(np.inf)), near).astype(np.float32)
    return np.where((scale >= _HALF_NORMAL) & (scale <= 32768), up, scale).astype(np.float32)


def _pair_peak(flat: Array) -> Array:
    if flat.shape[1] % 2:
        flat = np.pad(flat, ((0, 0), (0, 1)))
    above, below = np.maximum(flat, 0), np.minimum(flat, 0)
    high = (above[:, 0::2] + above[:, 1::2]).max(axis=1)
    low = (below[:, 0::2] + below[:, 1::2]).min(axis=1)
    return np.asarray(np.maximum(high, -low))


def quantized(weight: Array, scale: Array, axis: int | None) -> QuantWeight:
    """`weight` rounded to the nearest step of `scale`, ties to even."""
    out = QuantWeight(np.zeros(weight.shape, np.int8), np.asarray(scale, np.float32), axis)
    steps = np.rint(weight / out._spread())
    return QuantWeight(np.clip(steps, -LEVELS, LEVELS).astype(np.int8), out.scale, axis)


def quantized_bias(bias: Array, scale: Array) -> Array:
    """`bias` as int32 in steps of `scale` (activation scale times weight scale)."""
    steps = np.rint(bias.astype(np.float64) / scale)
    return np.clip(steps, -(2**31 - 1), 2**31 - 1).astype(np.int32)


def scales_for_bias(scale: Array, bias: Array, activation_scale: float) -> Array:
    """`scale` raised where the bias in its steps would not fit in 30 bits."""
    needed = np.abs(bias.astype(np.float64)) / (2**30 * max(activation_scale, 1e-30))
    return np.maximum(scale, needed.astype(np.float32))


def pair_repaired(values: Array, axis: int) -> Array:
    """`values` (int8) with every pair of neighbours brought back within 128, the larger one giving way."""
    rows = np.moveaxis(values, axis, 0).astype(np.int16)
    flat = rows.reshape(len(rows), -1)
    _repair(flat)
    if rows.ndim > 2:
        moved = np.moveaxis(flat.reshape(rows.shape), 1, -1)
        turned = np.ascontiguousarray(moved).reshape(len(rows), -1)
        _repair(turned)
        flat = np.ascontiguousarray(np.moveaxis(turned.reshape(moved.shape), -1, 1)).reshape(len(rows), -1)
    return np.moveaxis(flat.reshape(rows.shape), 0, axis).astype(np.int8)


def _repair(flat: Array) -> None:
    """In place; the magnitude of weights only falls, so that what was within bounds stays so."""
    even = flat.shape[1] - flat.shape[1] % 2
    first, second = flat[:, 0:even:2], flat[:, 1:even:2]
    same = np.sign(first) == np.sign(second)
    excess = np.where(same, np.maximum(np.abs(first) + np.abs(second) - 128, 0), 0)
    from_first = np.where(np.abs(first) >= np.abs(second), excess, 0)
    first -= (np.sign(first) * from_first).astype(flat.dtype)
    second -= (np.sign(second) * (excess - from_first)).astype(flat.dtype)
