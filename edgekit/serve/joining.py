"""Several requests as one run of the model: joined along the batch with one copy, split again with none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import BackendError, InputError
from edgekit.tensors import Array, Feed, FeedChecker, Tensors, TensorSpec, batch_axis

MAX_MEMORY = 256
"""Combinations of shapes that are remembered as checked."""

SHARED_BYTES = 64
"""An input without a batch (a sample rate) must be equal in all requests of a run; larger ones are not compared."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A feed that fits the model. Those with an equal `key` may be joined; None: with no other.

    `sizes` are the sizes of the dimensions that are padded, before padding.
    """

    feed: Tensors
    rows: int
    key: Hashable
    sizes: Mapping[str, int]


class Joiner:
    """Joins and splits for one model.

    Args:
        inputs: the model's inputs.
        outputs: the model's outputs.
        buckets: sizes that a named dimension is padded up to, by its name. The batch's own name pads joined rows.
        pad: what an input is padded with, by its name; 0 for those not named.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        buckets: Mapping[str, Sequence[int]] | None = None,
        pad: Mapping[str, float] | None = None,
    ) -> None:
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        first = self._inputs[0] if self._inputs else None
        self._batch = str(first.shape[0]) if first is not None and first.batched else ""
        self._axes = {s.name: batch_axis(s, self._inputs) for s in self._inputs}
        self._out_axes = {s.name: batch_axis(s, self._inputs) for s in self._outputs} if self._inputs else {}
        known = {d for s in self._inputs for d in s.shape if isinstance(d, str)}
        for name in buckets or {}:
            if name not in known:
                raise InputError(f"There is no dimension '{name}' to pad; this model has {', '.join(sorted(known))}.")
        self._buckets = {k: tuple(sorted(v)) for k, v in (buckets or {}).items()}
        self._row_buckets = self._buckets.pop(self._batch, ())
        self._pad = dict(pad or {})
        self._fits = FeedChecker(self._inputs)
        self._memory: dict[Hashable, tuple[int, Hashable, dict[str, int]]] = {}

    @property
    def pads(self) -> bool:
        """Whether a request alone may need padding too."""
        return bool(self._buckets or self._row_buckets)

    @property
    def joinable(self) -> bool:
        """Whether every output has a row for each row that goes in, by its declared shape."""
        return bool(self._batch and self._outputs) and None not in self._out_axes.values()

    @property
    def joins_in_front(self) -> bool:
        """Whether all that is joined and split is so along its first axis, and nothing is shared."""
        return self.joinable and {*self._axes.values(), *self._out_axes.values()} == {0}

    def check(self, feed: Feed) -> Checked:
        """`feed` in the model's order, checked; shapes that were seen before are not looked at again.

        Raises:
            InputError: it does not fit the model, or is larger than the largest bucket.
        """
        checked = self._fits(feed)
        signature = tuple([(name, value.shape) for name, value in checked.items()])
        seen = self._memory.get(signature)
        if seen is None:
            seen = self._look(checked)
            if len(self._memory) >= MAX_MEMORY:
                self._memory.clear()
            self._memory[signature] = seen
        rows, key, sizes = seen
        if key is not None:
            for name, axis in self._axes.items():
                if axis is None:
                    value = checked[name]
                    key = (key, value.tobytes()) if value.nbytes <= SHARED_BYTES and value.dtype != object else None
        return Checked(checked, rows, key, sizes)

    def join(self, parts: Sequence[Checked]) -> Tensors:
        """The feed of one run for all of `parts`, padded to its buckets."""
        if len(parts) == 1 and not parts[0].sizes and not self._row_buckets:
            return parts[0].feed
        rows = sum(p.rows for p in parts)
        total = _bucket(rows, self._row_buckets) if self._row_buckets else rows
        out: Tensors = {}
        for spec in self._inputs:
            arrays = [p.feed[spec.name] for p in parts]
            axis = self._axes[spec.name]
            if axis is None:
                out[spec.name] = self._padded(spec, arrays[0], arrays[0].shape)
            elif total == rows and not any(d in self._buckets for d in spec.shape):
                out[spec.name] = np.concatenate(arrays, axis=axis)
            else:
                out[spec.name] = self._filled(spec, arrays, axis, total)
        return out

    def split(self, outputs: Tensors, parts: Sequence[Checked]) -> list[Tensors]:
        """The outputs of each of `parts`: views of `outputs`, without what was padded.

        Raises:
            BackendError: an output does not have the rows that went in.
        """
        if len(parts) == 1 and not parts[0].sizes and not self._row_buckets:
            return [outputs]
        rows = sum(p.rows for p in parts)
        out: list[Tensors] = [{} for _ in parts]
        for spec in self._outputs:
            value, axis = outputs[spec.name], self._out_axes[spec.name]
            if axis is not None and value.shape[axis] < rows:
                raise BackendError(f"Output '{spec.name}' has {value.shape[axis]} rows for {rows} that went in.")
            start = 0
            for part, own in zip(parts, out):
                index = [
                    slice(part.sizes.get(dim, None) if isinstance(dim, str) else None)
                    for dim, _ in zip(spec.shape, value.shape)
                ]
                if axis is not None:
                    index[axis] = slice(start, start + part.rows)
                own[spec.name] = value[tuple(index)]
                start += part.rows
        return out

    def _look(self, feed: Tensors) -> tuple[int, Hashable, dict[str, int]]:
        rows, sizes, shapes, joinable = 1, {}, [], self.joinable
        for spec in self._inputs:
            shape = list(feed[spec.name].shape)
            for i, dim in enumerate(spec.shape):
                if isinstance(dim, str) and dim in self._buckets:
                    sizes[dim] = shape[i]
                    shape[i] = self._size(spec, dim, shape[i])
            axis = self._axes[spec.name]
            if spec is self._inputs[0] and self._batch:
                rows = shape[0]
            if axis is not None:
                joinable = joinable and shape[axis] == rows
                shape[axis] = -1
            shapes.append(tuple(shape))
        return rows, tuple(shapes) if joinable and rows else None, sizes

    def _size(self, spec: TensorSpec, dim: str, size: int) -> int:
        largest = self._buckets[dim][-1]
        if size > largest:
            raise InputError(
                f"Input '{spec.name}': dimension '{dim}' is {size}, this server takes at most {largest}. "
                "Send a shorter one, or serve with a larger bucket."
            )
        return _bucket(size, self._buckets[dim])

    def _target(self, spec: TensorSpec, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            _bucket(size, self._buckets[dim]) if isinstance(dim, str) and dim in self._buckets else size
            for dim, size in zip(spec.shape, shape)
        )

    def _padded(self, spec: TensorSpec, value: Array, shape: Sequence[int]) -> Array:
        target = self._target(spec, shape)
        if target == value.shape:
            return value
        out = np.full(target, self._pad.get(spec.name, 0), value.dtype)
        out[tuple(slice(n) for n in value.shape)] = value
        return out

    def _filled(self, spec: TensorSpec, arrays: Sequence[Array], axis: int, total: int) -> Array:
        target = list(self._target(spec, arrays[0].shape))
        target[axis] = total
        out = np.full(target, self._pad.get(spec.name, 0), arrays[0].dtype)
        start = 0
        for value in arrays:
            index = [slice(n) for n in value.shape]
            index[axis] = slice(start, start + value.shape[axis])
            out[tuple(index)] = value
            start += value.shape[axis]
        return out


def _bucket(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size`, or `size` itself beyond the largest."""
    at = bisect_left(buckets, size)
    return buckets[at] if at < len(buckets) else size
