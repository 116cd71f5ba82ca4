"""How fast a package's variants are on this machine, and what an inference costs in joules."""

from edgekit.bench.report import BatchPoint, BenchReport, Comparison, Correctness, Joules, Machine, Trial, VariantBench
from edgekit.bench.runner import bench
from edgekit.bench.stats import Latency, SpeedUp, percentile, speedup_of, steady_after

__all__ = [
    "BatchPoint",
    "BenchReport",
    "Comparison",
    "Correctness",
    "Joules",
    "Latency",
    "Machine",
    "SpeedUp",
    "Trial",
    "VariantBench",
    "bench",
    "percentile",
    "speedup_of",
    "steady_after",
]
