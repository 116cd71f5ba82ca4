from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import CheckError, UsageError
from edgekit.package import Package
from edgekit.quantize.apply import quantize_package
from edgekit.runtime.select import open_session
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of
from tests.quantize.test_data import recipe


def digest(package: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(package.rglob("*")) if p.is_file())).hexdigest()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return package_of(tmp_path / "net.edge", conv_net(), {"x": images(32)}, task="classification")


def test_int8_is_added_measured_and_chosen(package: Package) -> None:
    result = quantize_package(package, precision="int8", max_drop=10)
    variant = Package.open(package.path).variant("int8")
    assert result.report.within_budget
    assert variant.accuracy is not None
    assert variant.accuracy.agreement is not None
    assert variant.accuracy.agreement >= 0.9
    assert variant.settings["calibration"]["samples"] == 32
    with open_session(result.package, variant="int8") as session:
        assert session.run({"x": images(2)})["scores"].shape == (2, 5)
    kept = [a for a in result.report.attempts if a.kept]
    assert kept[-1].error == min(a.error for a in result.report.attempts)
    assert kept[-1].error <= kept[0].error


def test_fp16_keeps_float32_doors(package: Package) -> None:
    made = edgekit.quantize(package, precision="fp16")
    assert made.variant("fp16").bytes < made.variant("fp32").bytes
    with open_session(made, variant="fp16") as session:
        assert session.inputs[0].dtype == "float32"
    assert made.variant("fp16").accuracy is not None


def test_the_recipes_metric_is_the_budget(package: Package) -> None:
    calls: list[int] = []

    def evaluate(run: object, n: int) -> dict[str, float]:
        calls.append(n)
        return {"recall": 0.9 if len(calls) == 1 else 0.8}

    result = quantize_package(package, recipe=recipe(evaluate=evaluate), samples=16, max_drop=0.5)
    assert result.report.measure == "recall"
    assert result.report.drop == pytest.approx(10)
    assert not result.report.within_budget
    variant = result.package.variant("int8")
    assert variant.settings["over_budget"] is True
    assert variant.accuracy is not None
    assert variant.accuracy.metrics == {"recall": 0.8}
    with open_session(result.package) as session:
        assert session.variant == "fp32", "a variant over its budget is not chosen by itself"


def test_a_variant_that_exists_is_replaced_only_with_force(package: Package) -> None:
    first = quantize_package(package, max_drop=10, method="minmax").package
    with pytest.raises(UsageError, match="--force"):
        quantize_package(first, max_drop=10)
    again = quantize_package(first, max_drop=10, method="mse", force=True).package
    assert again.variant("int8").settings["method"] == "mse"
    assert [v.id for v in again.manifest.variants] == ["fp32", "int8", "int8-trt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "expected one of"),
        ({"max_drop": -1}, "--max-drop -1"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"samples": 0}, "--samples 0"),
    ],
)
def test_misuse_leaves_the_package_as_it_was(package: Package, options: dict[str, object], message: str) -> None:
    before = digest(package.path)
    with pytest.raises(UsageError, match=message):
        quantize_package(package, **options)  # type: ignore[arg-type]
    assert digest(package.path) == before


def test_one_sample_is_allowed_and_said(package: Package) -> None:
    result = quantize_package(package, samples=1, max_drop=100)
    assert any("one sample" in w for w in result.report.warnings)


def test_a_constant_activation_is_said(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": np.zeros((8, 3, 12, 12), np.float32)})
    result = quantize_package(package, max_drop=100)
    assert any("'x'" in w and "constant" in w for w in result.report.warnings)


def test_nan_activations_stop_it(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(weight_scale=1e37), {"x": images(8) * 1e4})
    before = digest(package.path)
    with pytest.raises(CheckError, match="NaN or infinite"):
        quantize_package(package)
    assert digest(package.path) == before


def test_an_interrupt_leaves_the_package_as_it_was(package: Package) -> None:
    before = digest(package.path)

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_package(package, progress=interrupt)
    assert digest(package.path) == before
    assert [p.name for p in package.path.parent.iterdir()] == ["net.edge"]


def test_a_model_that_is_quantised_already(package: Package, tmp_path: Path) -> None:
    import onnx

    made = quantize_package(package, max_drop=10).package
    model = onnx.load(made.model_file(made.variant("int8")))
    other = package_of(tmp_path / "again.edge", model, {"x": images(8)})
    with pytest.raises(UsageError, match="quantised already"):
        quantize_package(other)
