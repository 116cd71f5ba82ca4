"""What a benchmark found: the typed content of reports/bench.json. Times in seconds, energy in joules."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.bench.stats import Latency, SpeedUp
from edgekit.errors import UsageError


class BatchPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Throughput at one batch size: `samples_per_s` over `calls` calls whose median latency is `p50_s`."""

    batch: int
    samples_per_s: float
    p50_s: float
    calls: int


class EnergyTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One window of one sensor."""

    joules_per_inference: float
    uncertainty_j: float


class Joules(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one inference (one call at the latency's batch) by one sensor, everything the scope covers included.

    `power_w` is the mean while the model runs, `idle_w` with it loaded and nothing running, `active_w` and `active_j`
    the difference, in watts and joules an inference; None without `--energy`. `joules_per_correct` is the energy of one
    right prediction. Uncertainties hold in 95 % of cases and leave out an error of the sensor's own scale.
    """

    joules_per_inference: float
    uncertainty_j: float
    power_w: float
    source: str
    scope: str
    inferences: int
    duration_s: float
    idle_w: float | None = None
    active_w: float | None = None
    active_j: float | None = None
    active_uncertainty_j: float | None = None
    joules_per_correct: float | None = None
    correct_uncertainty_j: float | None = None
    trials: tuple[EnergyTrial, ...] = ()


class Correctness(msgspec.Struct, frozen=True, kw_only=True):
    """The share of right predictions: the metric's name, its value, on how many samples, and where it was measured."""

    metric: str
    share: float
    samples: int
    origin: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one variant: its latencies in seconds, and the samples it ran a second at the latency's batch."""

    calls: int
    p50_s: float
    p90_s: float
    p99_s: float
    mean_s: float
    samples_per_s: float


class VariantBench(msgspec.Struct, frozen=True, kw_only=True):
    """One variant. `energy` is empty where nothing measured it, and `energy_reason` says why.

    `latency` is at the report's batch, `trials` its rounds; `throughput` is the best point of `sweep`; `steady` tells
    whether warm-up ended in steady state. `correct` is None where the share of right predictions is not known, and
    `correct_reason` says why; both are None where it was not asked for.
    """

    id: str
    precision: str
    bytes: int
    device: str
    latency: Latency
    speedup: SpeedUp
    warmup_calls: int
    steady: bool
    throughput: BatchPoint
    sweep: tuple[BatchPoint, ...]
    energy: tuple[Joules, ...] = ()
    energy_reason: str | None = None
    correct: Correctness | None = None
    correct_reason: str | None = None
    trials: tuple[Trial, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured. `power_mode` is a Jetson's and `gpu` an NVIDIA GPU's name, empty elsewhere."""

    cpu: str
    architecture: str
    cores: int
    system: str
    power_mode: str = ""
    gpu: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one variant against a baseline.

    `change` is the share by which it grew (0.05: 5 % more), within `low` to `high` in 95 % of cases as far as trials
    tell; `limit` is None where none was given. `verdict`: "ok"; "worse" once the whole interval is past the limit;
    "unclear" where the figure is past it but the interval is not; "shown" without a limit.
    """

    variant: str
    metric: str
    unit: str
    old: float
    new: float
    change: float
    low: float
    high: float
    limit: float | None
    verdict: Literal["ok", "worse", "unclear", "shown"]
    trials: int


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """All variants, measured in turns on one machine. `skipped` maps a variant to why it was not run.

    `comparisons` are with the report that `baseline` names.
    """

    schema: int = 1
    edgekit: str
    package: str
    package_digest: str
    created: str
    machine: Machine
    batch: int
    threads: int
    inputs: str
    real_inputs: bool
    reference: str
    variants: tuple[VariantBench, ...]
    skipped: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    baseline: str | None = None
    comparisons: tuple[Comparison, ...] = ()

    def variant(self, variant_id: str) -> VariantBench:
        """The figures of one variant. Raises UsageError if it was not measured."""
        for v in self.variants:
            if v.id == variant_id:
                return v
        raise UsageError(
            f"Variant '{variant_id}' was not measured; the report has {', '.join(v.id for v in self.variants)}."
        )
