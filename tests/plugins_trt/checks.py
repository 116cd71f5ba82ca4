"""How results of kernels are compared, shared by the tests of every operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RELATIVE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""A few steps of each type: kernels compute in float32 and round once, as the reference does."""


def assert_close(got: Sequence[Any], want: Sequence[Any], *, relative: float | None = None) -> None:
    """Same dtypes and shapes, NaN and infinities at the same places, floats within a few roundings of the largest value
    around, integers within 1 (a tie that float32 rounds the other way)."""
    assert len(got) == len(want)
    for index, (mine, theirs) in enumerate(zip(got, want)):
        assert mine.dtype == theirs.dtype, f"output {index}"
        assert mine.shape == theirs.shape, f"output {index}"
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        if mine.dtype.kind in "iub" and mine.dtype.name != "bfloat16":
            assert np.abs(a - b).max(initial=0) <= 1, f"output {index}"
            continue
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=f"NaN of output {index}")
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=f"infinities of output {index}")
        allowed = relative or RELATIVE[mine.dtype.name]
        largest = np.abs(b[finite]).max(initial=1e-30)
        difference = np.abs(a[finite] - b[finite])
        fine = difference <= allowed * (np.abs(b[finite]) + largest)
        assert fine.all(), f"output {index} is off by {difference.max()}"
