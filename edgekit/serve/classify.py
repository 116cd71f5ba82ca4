"""The classification extension: an output as its best classes, in text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.errors import InputError
from edgekit.tensors import Array


def top_classes(name: str, value: Array, *, classes: int, labels: Sequence[str], batched: bool) -> Array:
    """The `classes` highest values of each row as "value:index" or "value:index:label", highest first.

    Shape (rows, n) when `batched`, where the first dimension counts rows and all others classes; else (n,) over the
    whole tensor. n is `classes`, or the number of values where there are fewer.

    Raises:
        InputError: the output is not numeric.
    """
    if value.dtype.kind not in "iuf":
        raise InputError(f"Output '{name}' is not numeric, so it has no best classes.")
    batched = batched and value.ndim > 1
    rows = value.reshape(len(value), math.prod(value.shape[1:])) if batched else value.reshape(1, -1)
    count = min(classes, rows.shape[1])
    order = _best_first(rows)[:, :count]
    out = np.empty((len(rows), count), object)
    for i, (row, best) in enumerate(zip(rows, order.tolist())):
        for j, index in enumerate(best):
            score = f"{float(row[index]):f}" if row.dtype.kind == "f" else str(row[index])
            out[i, j] = f"{score}:{index}:{labels[index]}" if index < len(labels) else f"{score}:{index}"
    return out if batched else out[0]


def _best_first(rows: Array) -> Array:
    """Indices of each row from its highest value to its lowest; the lower index first among equals, NaN last."""
    if rows.dtype.kind == "f":
        wide = rows.astype(np.float64)
        return np.argsort(-np.where(np.isnan(wide), -np.inf, wide), axis=1, kind="stable")
    reverse = np.argsort(rows[:, ::-1], axis=1, kind="stable")  # integers cannot be negated without overflow
    return np.asarray(rows.shape[1] - 1 - reverse[:, ::-1])
