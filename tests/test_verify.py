from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.errors import IntegrityError, PackageError, RecipeError, UsageError
from edgekit.package import Package
from edgekit.recipe import ModelSpec, Runner
from edgekit.tensors import TensorSpec
from edgekit.verify import LIMITS, difference, limits_for, verify
from tests.conftest import RECIPE
from tests.quantize.nets import model_of
from tests.quantize.packages import package_of
from tests.stages import pair, two_layers, with_int8
from tests.tiny import WEIGHT, tiny_manifest, tiny_model, tiny_package

Run = Callable[..., subprocess.CompletedProcess[str]]


def with_variant(package: Package, weight: np.ndarray, *, precision: str = "int8", name: str = "int8") -> Package:
    with package.edit() as writer:
        writer.path(f"{name}.onnx").write_bytes(tiny_model(weight).SerializeToString())
        writer.put(writer.variant_of(f"{name}.onnx", id=name, precision=precision, format="onnx", target="any"))
        return writer.commit()


def test_equal_variants_pass(tiny: Package) -> None:
    report = verify(tiny)
    assert report.passed
    assert [c.variant for c in report.checks] == ["fp32", "int8"]
    for check in report.checks:
        assert check.difference is not None
        assert check.difference.agreement == 1.0
        assert check.difference.max_rel < 1e-6
    assert "--recipe tiny.py" in report.metric_note


def test_a_wrong_variant_fails_and_says_why(tiny: Package) -> None:
    wrong = WEIGHT[:, ::-1].copy()
    report = verify(with_variant(tiny, wrong))
    assert not report.passed
    bad = next(c for c in report.checks if c.variant == "int8")
    assert not bad.passed
    assert "cosine" in bad.reason


def test_a_changed_class_fails_though_the_numbers_are_close() -> None:
    reference = {"scores": np.tile([1.0, 0.999, 0.0], (100, 1))}
    other = {"scores": np.tile([0.999, 1.0, 0.0], (100, 1))}
    found = difference(other, reference, classes=True)
    assert found.cosine > 0.999
    assert found.disagreements == 100
    assert difference(other, reference, classes=False).agreement is None


def test_nan_is_a_failure_with_the_output_named(tiny: Package) -> None:
    weight = WEIGHT.copy()
    weight[0, 0] = np.nan
    report = verify(with_variant(tiny, weight, precision="fp16", name="fp16"))
    bad = next(c for c in report.checks if c.variant == "fp16")
    assert not bad.passed
    assert "'scores' holds NaN" in bad.reason


def test_nan_in_the_reference_too_is_not_a_difference() -> None:
    both = {"y": np.array([1.0, math.nan, 2.0])}
    assert difference(both, both, classes=False).max_abs == 0


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(PackageError, match=r"Output 'y': got \(2,\)"):
        difference({"y": np.zeros(2)}, {"y": np.zeros(3)}, classes=False)
    with pytest.raises(PackageError, match="got nothing"):
        difference({}, {"y": np.zeros(3)}, classes=False)


def test_the_recipe_sets_the_allowed_drop() -> None:
    assert limits_for("int8", {"int8": 0.3}).drop == 0.3
    assert limits_for("int8-dynamic", {"int8": 0.3}).drop == 0.3
    assert limits_for("fp16", {"int8": 0.3}) == LIMITS["fp16"]


RECIPE_TEXT = """
import numpy as np
from edgekit import ModelSpec, TensorSpec
def evaluate(run, n):
    x = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    wanted = (x @ np.array([[1,0,0],[0,1,0],[0,0,1],[.5,.5,.5]], np.float32)).argmax(1)
    return {"top1": float((run({"x": x})["scores"].argmax(1) == wanted).mean())}
SPEC = ModelSpec(name="tiny", build=lambda: None, inputs=(TensorSpec("x", "float32", ("batch", 4)),), evaluate=evaluate)
"""


def test_the_metric_is_measured_through_every_variant(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE_TEXT)
    skewed = WEIGHT.copy()
    skewed[0, 0] = 1.25
    package = with_variant(tiny, skewed)
    done = edgekit("verify", package.path, "--recipe", recipe, "--json")
    assert done.returncode == 1, "over one point lost"
    checks = {c["variant"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["fp32"]["metrics"] == {"top1": 1.0}
    assert checks["int8"]["drop"] > 1
    assert "points" in checks["int8"]["reason"]
    assert json.loads((package.path / "reports/verify.json").read_text())["metric"] == "top1"


def test_a_metric_that_raises_is_named(tiny: Package, tmp_path: Path, edgekit: Run) -> None:
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE_TEXT.replace("wanted = ", "wanted = 1 / 0 #"))
    done = edgekit("verify", tiny.path, "--recipe", recipe)
    assert done.returncode == RecipeError.exit_code
    assert "evaluate of recipe 'tiny' failed with ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_without_samples_is_said(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "x.edge")
    with package.edit() as writer:
        bare = writer.commit(tiny_manifest(samples=None))
    with pytest.raises(PackageError, match="holds no samples"):
        verify(bare)


def test_a_changed_model_is_refused(tiny: Package, edgekit: Run) -> None:
    file = tiny.path / "int8.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        verify(tiny)
    done = edgekit("verify", tiny.path)
    assert done.returncode == 1
    assert "'int8.onnx' in 'tiny.edge' was changed" in done.stderr


def test_unknown_variants_are_misuse(tiny: Package) -> None:
    with pytest.raises(UsageError, match="it has fp32, int8"):
        verify(tiny, variants=["int4"])


def test_tensorrts_int8_is_not_run_on_a_cpu(tiny: Package) -> None:
    report = verify(with_variant(tiny, WEIGHT, precision="int8-trt", name="int8-trt"))
    assert "TensorRT's form of INT8" in report.skipped["int8-trt"]
    assert report.passed


def test_a_variant_that_is_named_is_run_or_refused_and_nothing_run_is_no_pass(tiny: Package) -> None:
    package = with_variant(tiny, WEIGHT, precision="int8-trt", name="int8-trt")
    assert [c.variant for c in verify(package, variants=["int8-trt"]).checks] == ["int8-trt"]
    with package.edit() as writer:
        writer.path("engines/a.engine").write_bytes(b"engine")
        writer.put(
            writer.variant_of("engines/a.engine", id="a", precision="fp16", format="tensorrt", target="sm72-trt10.3")
        )
        for variant in package.manifest.variants:
            writer.remove(variant.id)
        alone = writer.commit()
    with pytest.raises(UsageError, match="cannot run variant 'a': engine 'a' "):
        verify(alone, variants=["a"])
    report = verify(alone)
    assert report.skipped.keys() == {"a"}
    assert not report.passed


def test_the_demo_model_needs_no_torch_to_be_verified(digits: Package) -> None:
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from edgekit.cli.main import main\nsys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(digits.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for variant in ("fp32", "fp16", "int8"):
        assert variant in done.stdout


def test_int8_of_the_demo_model_loses_at_most_a_third_of_a_point(digits: Package, edgekit: Run) -> None:
    done = edgekit("verify", digits.path, "--recipe", RECIPE, "--json")
    assert done.returncode == 0, done.stderr
    checks = {c["variant"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["fp32"]["metrics"]["top1"] >= 0.98
    assert checks["int8"]["drop"] <= 0.3
    assert checks["fp16"]["drop"] <= 0.2


def test_a_copied_package_verifies_elsewhere(digits: Package, tmp_path: Path) -> None:
    moved = shutil.copytree(digits.path, tmp_path / "moved" / "renamed.edge")
    assert verify(Package.open(moved)).passed


def test_a_package_of_stages_is_judged_as_a_whole_by_a_recipe(tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((20, 8)).astype(np.float32)

    def evaluate(run: Runner, n: int) -> dict[str, float]:
        return {"error": float(np.abs(run({"x": x[:n]})["y"] - two_layers(x[:n])).mean())}

    spec = TensorSpec("x", "float32", ("batch", 8))
    recipe = ModelSpec(
        name="whole", build=object, inputs=(spec,), evaluate=evaluate, higher_is_better=False, tolerance={"int8": 1.0}
    )
    package = pair(tmp_path)
    report = verify(package, recipe=recipe, metric_samples=10)
    assert [c.variant for c in report.checks] == ["encoder/fp32", "decoder/fp32", "all stages/fp32"]
    assert report.passed
    assert report.metric == "error"
    assert report.checks[-1].metrics["error"] < 1e-5

    worse = with_int8(package, 1, scale=1.1)
    whole = verify(worse, recipe=recipe).checks[-1]
    assert whole.variant == "all stages/best"
    assert whole.drop == pytest.approx(10 * np.abs(two_layers(x)).mean(), rel=1e-2), "hundredths"
    assert not whole.passed
    assert "at most 1 are allowed" in whole.reason


def test_a_model_that_decides_in_its_graph_is_judged_by_its_metric(tmp_path: Path) -> None:
    def best(*, largest: int) -> onnx.ModelProto:
        """The three best (or worst) of six scores, and which they are."""
        node = helper.make_node("TopK", ["x", "three"], ["values", "which"], largest=largest)
        model = model_of([node], {"three": np.array([3])}, {"x": ("batch", 6)}, ["values"])
        model.graph.output.append(helper.make_tensor_value_info("which", onnx.TensorProto.INT64, ["batch", 3]))
        return model

    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    package = package_of(tmp_path / "best.edge", best(largest=1), {"x": x})
    with package.edit() as writer:
        writer.path("int8.onnx").write_bytes(best(largest=0).SerializeToString())
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        package = writer.commit()

    def judged(metric: Callable[[float], float]) -> str:
        def evaluate(run: Runner, n: int) -> dict[str, float]:
            return {"mAP": metric(float(run({"x": x[:1]})["values"][0, 0]))}

        inputs = package.manifest.input_specs
        spec = ModelSpec(name="best", build=lambda: None, inputs=inputs, evaluate=evaluate)
        return next(c.reason for c in verify(package, recipe=spec).checks if c.variant == "int8")

    assert judged(lambda first: 0.9) == "within tolerance"
    assert "points" in judged(lambda first: first)
    assert "cosine" in next(c.reason for c in verify(package).checks if c.variant == "int8")
