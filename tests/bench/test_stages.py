from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench import bench
from edgekit.bench.stages import BEST, whole_variants
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.telemetry import Found
from tests.stages import pair


def with_int8(package: Package, stage: int) -> Package:
    """The pair with a second variant of one stage (the same graph, called int8)."""
    own = package.stages()[stage][1]
    with own.edit() as writer:
        writer.path("int8.onnx").write_bytes(own.file("fp32.onnx").read_bytes())
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        writer.commit()
    return Package.open(package.path)


def test_the_whole_is_measured_in_the_forms_that_all_stages_have(tmp_path: Path) -> None:
    package = pair(tmp_path)
    sizes = [own.reference.bytes for _, own in package.stages()]
    assert [(v.id, v.bytes) for v in whole_variants(package, None, "cpu")] == [("fp32", sum(sizes))]
    one = with_int8(package, 0)
    assert [(v.id, v.precision) for v in whole_variants(one, None, "cpu")] == [
        ("fp32", "fp32"),
        (BEST, "int8 + fp32"),
    ]
    both = with_int8(one, 1)
    assert [v.id for v in whole_variants(both, None, "cpu")] == ["fp32", "int8"]
    with pytest.raises(UsageError, match="do not all have a variant 'int8' that runs here; together they run as fp32"):
        whole_variants(pair(tmp_path / "other"), ["int8"], "cpu")


def test_bench_of_a_package_of_stages(tmp_path: Path) -> None:
    package = with_int8(pair(tmp_path), 1)
    report = bench(package, seconds=0.05, sweep=(1, 2), threads=1, device="cpu", sensors=Found())
    assert [v.id for v in report.variants] == ["fp32", BEST]
    assert report.reference == "fp32"
    assert all(v.latency.p50_s > 0 and v.throughput.samples_per_s > 0 for v in report.variants)
