"""What `quantize` did: every attempt with its measured error, and what was kept."""

from __future__ import annotations

import msgspec

from edgekit.quantize.measure import Gap
from edgekit.quantize.sensitivity import LayerSensitivity


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried, measured on rows that the float model judged.

    Attributes:
        step: what was done ("percentile ranges", "cross-layer equalisation").
        error: power of the difference over the power of what varies in the float output.
        agreement: share of samples with the float model's class, or None.
        drop: loss in points of what the budget is about (metric, agreement or error); None where not measured.
        kept: whether the result has this step.
        note: why not, or what else to know.
    """

    step: str
    error: float
    agreement: float | None = None
    drop: float | None = None
    kept: bool = False
    note: str = ""

    @classmethod
    def of(cls, step: str, gap: Gap, **fields: object) -> Attempt:
        """The attempt `step` with its measured `gap`."""
        return cls(step=step, error=gap.error, agreement=gap.agreement, **fields)  # type: ignore[arg-type]


class VariantResult(msgspec.Struct, frozen=True, kw_only=True):
    """One variant, measured on all calibration rows (and by the recipe's metric); `speed_up` is over fp32 here."""

    id: str
    bytes: int
    result: float
    drop: float
    agreement: float | None
    error: float
    within_budget: bool
    speed_up: float | None = None


class QuantizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one `quantize`.

    Attributes:
        variant: id of the variant that was made.
        measure: what the budget is about: "top1", "top-1 agreement" or "output error".
        reference, result: the measure for the float model and for the variant.
        drop, budget: loss and largest loss, in points.
        calibrated_on: the data, in words, with the number of rows.
        variants: every variant that was made; the fields above are of the first.
        layers: sensitivity of each layer, when it was asked for.
        attempts: all that was tried, in order.
        warnings: what the user should know.
        wall_s: seconds that it took.
        peak_bytes: largest memory of the process so far.
    """

    package: str
    variant: str
    precision: str
    measure: str
    reference: float
    result: float
    drop: float
    budget: float
    within_budget: bool
    calibrated_on: str
    samples: int
    bytes: int
    variants: tuple[VariantResult, ...]
    layers: tuple[LayerSensitivity, ...]
    attempts: tuple[Attempt, ...]
    warnings: tuple[str, ...] = ()
    wall_s: float = 0.0
    peak_bytes: int = 0
