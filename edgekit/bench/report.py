"""What a benchmark found: the typed content of reports/bench.json. Times in seconds, energy in joules."""

from __future__ import annotations

import msgspec

from edgekit.bench.stats import Latency, SpeedUp
from edgekit.errors import UsageError


class BatchPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Throughput at one batch size: `samples_per_s` over `calls` calls whose median latency is `p50_s`."""

    batch: int
    samples_per_s: float
    p50_s: float
    calls: int


class Joules(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one inference (one call at the latency's batch) by one sensor, everything the scope covers included."""

    joules_per_inference: float
    uncertainty_j: float
    power_w: float
    source: str
    scope: str
    inferences: int
    duration_s: float


class VariantBench(msgspec.Struct, frozen=True, kw_only=True):
    """One variant. `energy` is empty where nothing measured it, and `energy_reason` says why.

    `latency` is at the report's batch; `throughput` is the best point of `sweep`; `steady` tells whether warm-up
    ended in steady state.
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


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    architecture: str
    cores: int
    system: str


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """All variants, measured in turns on one machine. `skipped` maps a variant to why it was not run."""

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

    def variant(self, variant_id: str) -> VariantBench:
        """The figures of one variant. Raises UsageError if it was not measured."""
        for v in self.variants:
            if v.id == variant_id:
                return v
        raise UsageError(
            f"Variant '{variant_id}' was not measured; the report has {', '.join(v.id for v in self.variants)}."
        )
