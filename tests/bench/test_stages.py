from __future__ import annotations

from pathlib import Path

from edgekit.bench import bench
from edgekit.runtime.whole import BEST
from edgekit.telemetry import Found
from tests.stages import pair, with_int8


def test_bench_of_a_package_of_stages(tmp_path: Path) -> None:
    package = with_int8(pair(tmp_path), 1)
    report = bench(package, seconds=0.05, sweep=(1, 2), threads=1, device="cpu", sensors=Found())
    assert [v.id for v in report.variants] == ["fp32", BEST]
    assert report.reference == "fp32"
    assert all(v.latency.p50_s > 0 and v.throughput.samples_per_s > 0 for v in report.variants)
