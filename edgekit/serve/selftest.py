"""Before a model serves: is it the model that the package says it is?"""

from __future__ import annotations

import numpy as np

from edgekit.errors import CheckError
from edgekit.package import Samples
from edgekit.runtime.session import Session
from edgekit.tensors import Tensors, run_in_batches

MAX_ERROR = {"fp32": 0.05, "fp16": 0.1, "bf16": 0.2}
MAX_ERROR_QUANTIZED = 0.6
"""Largest error of an output relative to its reference (2-norms): a loaded model beyond it is another model, or broken.
Whether a variant is good is not asked here but by `edgekit verify`."""

BATCH = 4
"""Samples a run: the runtime keeps the memory of its largest run for as long as it serves."""


def self_test(session: Session, samples: Samples, *, precision: str, name: str) -> None:
    """Run the package's samples and compare with the stored outputs of the reference.

    Raises:
        CheckError: an output is far from the reference, or not finite where the reference is.
        BackendError, InputError: the model does not run on the package's own samples.
    """
    got = run_in_batches(session.run, samples.inputs, inputs=session.inputs, outputs=session.outputs, size=BATCH)
    wrong = wrong_output(got, samples.outputs, limit=MAX_ERROR.get(precision, MAX_ERROR_QUANTIZED))
    if wrong:
        raise CheckError(
            f"Variant '{session.variant}' of '{name}' is not served: {wrong}. "
            "See: edgekit verify, or choose another with --variant."
        )


def wrong_output(got: Tensors, reference: Tensors, *, limit: float) -> str:
    """What is clearly wrong with `got`, in words, or an empty string.

    Only floating outputs of equal shape are compared; a model may give indices or detections in another order.
    """
    for name, wanted in reference.items():
        value = got.get(name)
        if value is None:
            return f"it has no output '{name}'"
        if wanted.dtype.kind != "f" or value.shape != wanted.shape or value.dtype.kind != "f":
            continue
        a, b = value.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
        finite = np.isfinite(b)
        if not np.isfinite(a[finite]).all():
            return f"output '{name}' holds NaN or infinity where the reference does not"
        error = float(np.linalg.norm(a[finite] - b[finite]))
        scale = float(np.linalg.norm(b[finite]))
        if error > limit * scale + 1e-6:
            share = f"{error / scale:.2g} times the reference" if scale else f"{error:.2g} where the reference is 0"
            return f"output '{name}' differs by {share} on the package's samples, at most {limit:g} is credible"
    return ""
