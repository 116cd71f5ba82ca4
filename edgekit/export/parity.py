"""Is the exported model the original? The same real samples through both, at several batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgekit.errors import CheckError
from edgekit.manifest import Accuracy, Parity
from edgekit.tensors import Array, Feed, Tensors, TensorSpec, numpy_dtype, sample_count, shape_text, take_samples

BATCHES = (1, 3, 8)

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference, relative to the largest output, by the coarsest float type of the model. A float32 export is
usually within 1e-6; 1e-4 leaves room for deep sums and still finds every wrong operator."""

Runner = Callable[[Feed], Tensors]


def default_tolerance(dtypes: Sequence[str]) -> float:
    """The tolerance for a model whose tensors have these types: that of the coarsest."""
    return max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=TOLERANCE["float32"])


def parity(
    reference: Runner, candidate: Runner, samples: Feed, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[Parity, ...]:
    """Largest differences of `candidate` from `reference` at each batch size that `samples` allow.

    A model with a fixed batch is compared at that batch, on up to eight samples.

    Raises:
        CheckError: an output of either holds NaN or infinity, or has another shape.
    """
    count = sample_count(samples, inputs)
    rows = []
    if inputs[0].batched:
        for batch in sorted({min(b, count) for b in BATCHES}):
            rows.append(_compare(reference, candidate, take_samples(samples, inputs, 0, batch, inputs), outputs, batch))
        return tuple(rows)
    for i in range(min(count, max(BATCHES))):
        feed = take_samples(samples, inputs, i, i + 1, inputs)
        size = inputs[0].shape[0] if inputs[0].shape else 1
        rows.append(_compare(reference, candidate, feed, outputs, int(size)))
    return (Parity(batch=rows[0].batch, max_abs=max(r.max_abs for r in rows), max_rel=max(r.max_rel for r in rows)),)


def _compare(reference: Runner, candidate: Runner, feed: Feed, outputs: Sequence[TensorSpec], batch: int) -> Parity:
    want = reference(feed)
    got = candidate(feed)
    worst_abs = worst_rel = 0.0
    for spec in outputs:
        a, b = as_float(want[spec.name], spec.dtype), as_float(got[spec.name], spec.dtype)
        check_finite(a, spec.name, "original", batch)
        if a.shape != b.shape:
            raise CheckError(
                f"Output '{spec.name}' has shape {shape_text(b.shape)} in ONNX Runtime and {shape_text(a.shape)} in "
                f"the original at batch {batch}. Write the model's shapes from its input's, or export with --static."
            )
        check_finite(b, spec.name, "exported", batch)
        if a.size:
            difference = float(np.abs(a - b).max())
            largest = float(np.abs(a).max())
            worst_abs = max(worst_abs, difference)
            worst_rel = max(worst_rel, difference / largest if largest else difference)
    return Parity(batch=batch, max_abs=worst_abs, max_rel=worst_rel)


def as_float(array: Array, dtype: str) -> Array:
    """Any numeric output as float64 for comparison; strings as whether they are equal is not needed here."""
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype == numpy_dtype("string"):
        return np.zeros(array.shape)
    return array.astype(np.float64)


def check_finite(values: Array, output: str, whose: str, batch: int) -> None:
    """Raise CheckError, naming the output, if `values` hold NaN or infinity."""
    if values.size and not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise CheckError(
            f"Output '{output}' of the {whose} model holds {what} on real samples at batch {batch}. "
            "Check the weights and the preprocessing, or clamp it in the model."
        )


def check_within(rows: Sequence[Parity], tolerance: float) -> None:
    """Raise CheckError if any batch differs by more than `tolerance` (relative to the largest output)."""
    worst = max(rows, key=lambda r: r.max_rel)
    if worst.max_rel > tolerance:
        raise CheckError(
            f"The exported model differs from the original by {worst.max_rel:.3g} of the largest output at batch "
            f"{worst.batch}; accepted is {tolerance:g}. Nothing was written; if the difference is expected "
            "(random layers, low precision), raise --tolerance."
        )


def accuracy(
    want: Tensors, got: Tensors, outputs: Sequence[TensorSpec], *, count: int, classification: bool
) -> Accuracy:
    """How near the exported model is on the package's samples: the figures that every variant gets."""
    largest, cosine = 0.0, 1.0
    for spec in outputs:
        a, b = as_float(want[spec.name], spec.dtype), as_float(got[spec.name], spec.dtype)
        if not a.size:
            continue
        largest = max(largest, float(np.abs(a - b).max()))
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = min(cosine, float((a * b).sum() / norms) if norms else float(np.array_equal(a, b)))
    agreement = None
    if classification and want[outputs[0].name].ndim >= 2:
        first = outputs[0].name
        rows = len(want[first])
        same = want[first].reshape(rows, -1).argmax(axis=1) == got[first].reshape(rows, -1).argmax(axis=1)
        agreement = float(same.mean())
    return Accuracy(samples=count, max_abs=largest, cosine=cosine, agreement=agreement)
