from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bench import BenchReport, bench
from edgekit.errors import IntegrityError, UsageError
from edgekit.manifest import Tensor
from edgekit.package import Package, create
from edgekit.telemetry import Found
from edgekit.tensors import TensorSpec
from tests.bench.test_joules import Counter
from tests.data import data_path
from tests.tiny import tiny_manifest

QUICK = {"seconds": 0.06, "sweep": (1, 4)}


def test_every_variant_is_measured_against_the_reference(tiny: Package) -> None:
    said: list[str] = []
    report = bench(tiny, threads=1, say=said.append, sensors=Found(), **QUICK)
    assert [v.id for v in report.variants] == ["fp32", "int8"]
    assert (report.reference, report.threads, report.batch, report.real_inputs) == ("fp32", 1, 1, True)
    assert report.variant("fp32").speedup.ratio == 1
    assert 0.2 < report.variant("int8").speedup.ratio < 5  # the same model under two names
    for v in report.variants:
        assert 0 < v.latency.p50_s <= v.latency.p90_s <= v.latency.p99_s <= v.latency.max_s
        assert [p.batch for p in v.sweep] == [1, 4]
        assert v.throughput.samples_per_s == max(p.samples_per_s for p in v.sweep)
        assert v.energy == ()
        assert v.energy_reason == "No energy sensor was found."
        assert "1 thread" in v.device
    assert any("batch 4" in text for text in said)
    assert msgspec.json.decode(msgspec.json.encode(report), type=BenchReport) == report


def test_energy_is_measured_where_a_sensor_is(tiny: Package) -> None:
    report = bench(tiny, variants=["int8"], sensors=Found((Counter(),)), **QUICK)
    (energy,) = report.variant("int8").energy
    assert 0 < energy.uncertainty_j < energy.joules_per_inference
    assert energy.scope == "CPU package"
    assert report.variant("int8").energy_reason is None


def test_a_single_variant_is_its_own_reference_and_unknown_ones_are_named(tiny: Package) -> None:
    report = bench(tiny, variants=["int8", "int8"], sensors=Found(), **QUICK)
    assert [v.id for v in report.variants] == [report.reference] == ["int8"]
    with pytest.raises(UsageError, match="no variant 'int4'; it has fp32, int8"):
        bench(tiny, variants=["int4"], **QUICK)
    with pytest.raises(UsageError, match="not measured"):
        report.variant("fp32")


def test_variants_for_other_machines_are_skipped_with_the_reason(tiny: Package) -> None:
    with tiny.edit() as writer:
        model = tiny.file("fp32.onnx").read_bytes()
        for file, fields in {
            "int8-trt.onnx": {"id": "int8-trt", "precision": "int8-trt", "format": "onnx", "target": "any"},
            "a.engine": {"id": "fp16-sm87", "precision": "fp16", "format": "tensorrt", "target": "sm87-trt10.16"},
        }.items():
            writer.path(file).write_bytes(model)
            writer.put(writer.variant_of(file, **fields))
        package = writer.commit()
    report = bench(package, sensors=Found(), **QUICK)
    assert [v.id for v in report.variants] == ["fp32", "int8"]
    assert "sm87-trt10.16" in report.skipped["fp16-sm87"]
    assert "TensorRT" in report.skipped["int8-trt"]


def test_a_changed_file_is_refused(tiny: Package) -> None:
    path = tiny.path / "int8.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"int8\.onnx"):
        bench(tiny, **QUICK)


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"threads": 0}, {"seconds": 0}, {"seconds": float("nan")}, {"sweep": (0,)}, {"sweep": ()}]
)
def test_numbers_without_sense_are_refused(tiny: Package, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        bench(tiny, **{**QUICK, **wrong})


def test_few_calls_and_random_inputs_are_said(tmp_path: Path) -> None:
    """SqueezeNet, whose batch is fixed at one, without samples."""
    model = data_path("clf_squeezenet11/squeezenet11_fp32.onnx")
    with create(tmp_path / "squeezenet.edge") as writer:
        writer.path("fp32.onnx").write_bytes(model.read_bytes())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        package = writer.commit(
            tiny_manifest(
                inputs=(Tensor.of(TensorSpec("data_0", "float32", (1, 3, 224, 224))),),
                outputs=(Tensor.of(TensorSpec("softmaxout_1", "float32", (1, 1000, 1, 1))),),
            )
        )
    report = bench(package, threads=1, sensors=Found(), seconds=0.1)
    (v,) = report.variants
    assert [p.batch for p in v.sweep] == [1]
    assert v.latency.calls < 100
    text = " ".join(report.notes)
    assert "random" in text
    assert "fewer than 100 calls" in text
    with pytest.raises(UsageError, match="fixed batch"):
        bench(package, batch=2, **QUICK)


def test_nothing_of_the_package_changes(tiny: Package) -> None:
    before = {p.name: p.read_bytes() for p in tiny.path.iterdir()}
    bench(tiny, sensors=Found(), **QUICK)
    assert {p.name: p.read_bytes() for p in tiny.path.iterdir()} == before
    assert np.isfinite(bench(tiny, batch=3, sensors=Found(), **QUICK).variant("fp32").latency.p50_s)
