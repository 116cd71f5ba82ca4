"""The whole way, from recipes to packages."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from edgekit.errors import CheckError, ModelError, PackageError, RecipeError, UsageError
from edgekit.export.build import export
from edgekit.export.torch_runner import TorchRunner
from edgekit.graphs import load_model
from edgekit.package import Package
from edgekit.recipe import spec_from_recipe
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import TensorSpec
from tests.data import data_path
from tests.export.common import RECIPES, left_behind, model, operators, recipe, unfolded


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export(RECIPES / "residual.py", output=tmp_path_factory.mktemp("export") / "residual.edge")


def test_the_model_is_folded_named_and_dynamic(residual: Package) -> None:
    proto = load_model(residual.model_file(residual.reference))
    assert unfolded(proto) == []
    assert not {"BatchNormalization", "Dropout", "Identity"} & set(operators(proto))
    onnx.checker.check_model(proto, full_check=True)
    assert [str(s) for s in residual.manifest.input_specs] == ["image: float32[batch, 3, 16, 16]"]
    assert [str(s) for s in residual.manifest.output_specs] == ["logits: float32[batch, 5]"]
    inner = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info}
    assert all(o in inner for n in proto.graph.node for o in n.output if o != "logits")
    assert all(dims[0] == "batch" for dims in inner.values() if len(dims) == 4)


def test_parity_is_measured_at_three_batches_on_real_samples(residual: Package) -> None:
    provenance = residual.manifest.provenance
    assert [p.batch for p in provenance.parity] == [1, 3, 8]
    assert all(0 < p.max_rel < 1e-5 and 0 < p.max_abs < 1e-4 for p in provenance.parity)
    assert residual.manifest.samples is not None
    assert (residual.manifest.samples.source, residual.manifest.samples.count) == ("recipe", 256)


def test_samples_hold_what_pytorch_says(residual: Package) -> None:
    spec = spec_from_recipe(RECIPES / "residual.py")
    runner = TorchRunner(spec.build().eval(), spec.inputs, model="residual", outputs=spec.outputs)
    stored = residual.samples()
    np.testing.assert_array_equal(stored.inputs["image"], spec.sample(256, 0)["image"])
    np.testing.assert_allclose(stored.outputs["logits"], runner.run(stored.inputs)["logits"], atol=1e-6)
    with OrtSession(residual.model_file(residual.reference)) as session:
        np.testing.assert_allclose(session.run(stored.inputs)["logits"], stored.outputs["logits"], atol=1e-5)


def test_the_manifest_holds_what_the_recipe_declares(residual: Package) -> None:
    manifest = residual.manifest
    assert (manifest.name, manifest.task, manifest.license) == ("residual", "classification", "Apache-2.0")
    assert manifest.description == "a small residual network"
    assert manifest.tolerance == {"int8": 0.5}
    assert list(manifest.preprocess) == ["image"]
    assert residual.labels() == ("a", "b", "c", "d", "e")
    provenance = manifest.provenance
    assert provenance.tool.startswith("edgekit ")
    assert provenance.framework == f"torch {torch.__version__.partition('+')[0]}"
    assert provenance.opset == 18
    assert provenance.source == "residual.py"
    assert provenance.source_sha256 == hashlib.sha256((RECIPES / "residual.py").read_bytes()).hexdigest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance.created)


def test_the_variant_is_measured_with_the_recipe_s_metric(residual: Package) -> None:
    variant = residual.reference
    assert (variant.id, variant.precision, variant.format, variant.target) == ("fp32", "fp32", "onnx", "any")
    assert variant.accuracy is not None
    assert (variant.accuracy.samples, variant.accuracy.metric_samples) == (256, 40)
    assert variant.accuracy.agreement == 1.0
    assert variant.accuracy.cosine == pytest.approx(1)
    assert variant.accuracy.metrics["spread"] > 0


def test_no_path_of_this_machine_is_in_the_package(residual: Package) -> None:
    for file in residual.path.iterdir():
        assert str(RECIPES).encode() not in file.read_bytes()
        assert str(residual.path.parent).encode() not in file.read_bytes()


def test_several_inputs_states_defaults_and_named_dimensions(tmp_path: Path) -> None:
    package = export(RECIPES / "two_inputs.py", output=tmp_path / "two.edge")
    manifest = package.manifest
    assert [str(s) for s in manifest.input_specs] == [
        "sound: float32[batch, 4, time]",
        "state: float32[1, batch, 6]",
        "gain: float32[]",
    ]
    assert [str(s) for s in manifest.output_specs] == [
        "score: float32[batch]",
        "next: float32[1, batch, 6]",
        "sound_out: float32[batch, 4, time]",
    ]
    assert (manifest.states, manifest.defaults) == ({"state": "next"}, {"gain": 0.5})
    assert package.samples().inputs["state"].shape == (1, 256, 6)
    assert package.samples().outputs["next"].shape == (1, 256, 6)
    feed = {"sound": np.ones((2, 4, 3), np.float32), "state": np.zeros((1, 2, 6), np.float32), **package.defaults()}
    with OrtSession(package.model_file(package.reference)) as session:
        assert session.run(feed)["score"].shape == (2,)


def test_resnet20_with_published_weights_keeps_its_accuracy(tmp_path: Path) -> None:
    data_path("clf_cifar10_resnet_pytorch")
    data_path("data_cifar10_jpeg")
    package = export(RECIPES / "cifar_resnet20.py", output=tmp_path / "r.edge")
    assert unfolded(load_model(package.path / "fp32.onnx")) == []
    accuracy = package.reference.accuracy
    assert accuracy is not None
    assert (accuracy.agreement, accuracy.metric_samples) == (1.0, 500)
    assert accuracy.metrics["top1"] > 0.8  # the JPEG copies cost a published ResNet about ten points


def test_mobilenet_with_published_weights_at_a_fixed_batch(tmp_path: Path) -> None:
    data_path("clf_mobilenet_v1_025_pytorch")
    data_path("img_samples")
    package = export(RECIPES / "mobilenet_v1.py", output=tmp_path / "m.edge", static=True)
    assert [str(s) for s in package.manifest.input_specs] == ["image: float32[1, 3, 224, 224]"]
    assert [p.batch for p in package.manifest.provenance.parity] == [1]
    assert "BatchNormalization" not in operators(load_model(package.path / "fp32.onnx"))
    samples = package.samples()
    assert samples.count == samples.inputs["image"].shape[0] > 20
    assert sum(a.nbytes for a in (*samples.inputs.values(), *samples.outputs.values())) <= 16 << 20


def test_a_recipe_may_build_an_onnx_file_and_declare_the_rest(tmp_path: Path) -> None:
    path = data_path("audio_silero_vad/silero_vad_16k_op15.onnx")
    wav = data_path("audio_silero_vad/test.wav")
    (tmp_path / "vad.py").write_text(
        f"""
from pathlib import Path
import numpy as np
from edgekit import AudioPreprocess, ModelSpec, TensorSpec
SOUND = AudioPreprocess(sample_rate=16000, frame=512, context=64)
def samples(n, seed):
    return {{"input": SOUND.from_bytes(Path({str(wav)!r}).read_bytes(), name="test.wav")[:n]}}
def evaluate(run, n):
    feed = samples(300, 0)
    feed.update(state=np.zeros((2, 300, 128), np.float32), sr=np.array(16000))
    return {{"speech": float((run(feed)["output"] > 0.5).mean())}}
SPEC = ModelSpec(name="vad", build=lambda: Path({str(path)!r}), samples=samples, evaluate=evaluate,
    inputs=(TensorSpec("input", "float32", ("batch", 576)), TensorSpec("state", "float32", (2, "batch", 128)),
            TensorSpec("sr", "int64", ())),
    states={{"state": "stateN"}}, defaults={{"sr": np.int64(16000)}}, preprocess={{"input": SOUND}})
"""
    )
    package = export(tmp_path / "vad.py", output=tmp_path / "vad.edge")
    manifest = package.manifest
    assert [p.batch for p in manifest.provenance.parity] == [1, 3, 8]
    assert (manifest.states, manifest.defaults) == ({"state": "stateN"}, {"sr": 16000})
    assert [str(s) for s in manifest.output_specs] == ["output: float32[batch, 1]", "stateN: float32[2, batch, 128]"]
    assert (manifest.provenance.source, manifest.provenance.framework) == ("vad.py", f"onnx {onnx.__version__}")
    assert package.samples().inputs["state"].shape == (2, 256, 128)
    assert package.reference.accuracy is not None
    assert package.reference.accuracy.metrics["speech"] > 0.1


def test_a_half_precision_module_becomes_fp16(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        tail="SPEC = ModelSpec(name='half', build=lambda: Net().half(),"
        " inputs=(TensorSpec('x', 'float16', ('batch', 4)),),"
        " samples=lambda n, s: {'x': samples(n, s)['x'].astype(np.float16)})",
    )
    package = export(path, output=tmp_path / "half.edge")
    assert (package.reference.id, package.manifest.input_specs[0].dtype) == ("fp16", "float16")


@pytest.mark.parametrize(
    ("forward", "tail", "error", "says"),
    [
        ("x @ self.weight", "SPEC = None", RecipeError, "expected a ModelSpec"),
        ("x @ x", "", RecipeError, "The model of 'net' failed with RuntimeError: mat1 and mat2"),
        ("(x, x)", "object.__setattr__(SPEC, 'outputs', ('y',))", RecipeError, "returns 2 tensors, its recipe names 1"),
        ("(x @ self.weight).sum(0)", "", RecipeError, r"Output 'output' of 'net' has shape \(3\) for a batch of two"),
        ("x @ self.weight / 0 * 0", "", CheckError, "Output 'output' of the original model holds NaN"),
        ("torch.complex(x, x)", "", ModelError, "Output 'output' has type complex64"),
        ("x.to(torch.float8_e4m3fn)", "", ModelError, "has type float8_e4m3fn"),
        ("3", "", RecipeError, "returns a int; expected tensors"),
        ("x", "SPEC = ModelSpec(name='n', build=list, inputs=SPEC.inputs)", RecipeError, "returned list; expected"),
        ("x", "def samples(n, seed):\n    return {'x': np.zeros((n, 5), np.float32)}\n"
         "SPEC = ModelSpec(name='n', build=build, inputs=SPEC.inputs, samples=samples)",
         RecipeError, "got \\(256,5\\)"),
    ],
)  # fmt: skip
def test_a_recipe_that_breaks_its_word_leaves_nothing(
    tmp_path: Path, forward: str, tail: str, error: type[Exception], says: str
) -> None:
    path = recipe(tmp_path, forward=forward, tail=tail)
    with pytest.raises(error, match=says):
        export(path, output=tmp_path / "m.edge")
    assert left_behind(tmp_path) == []


def test_an_existing_output_is_refused_before_the_recipe_runs(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("raise SystemError('the recipe ran')")
    old = tmp_path / "m.edge"
    old.mkdir()
    (old / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"m\.edge' exists\. .*--force"):
        export(tmp_path / "slow.py", output=old)
    (tmp_path / "file").write_text("")
    for output in ("file/m.edge", "none/m.edge"):
        with pytest.raises(Exception, match="was not written") as caught:
            export(tmp_path / "slow.py", output=tmp_path / output)
        assert type(caught.value).__name__ == "StorageError"
    with pytest.raises(UsageError, match="expected NAME.edge"):
        export(tmp_path / "slow.py", output=tmp_path / "model.onnx")


def test_force_replaces_the_whole_package_and_failure_keeps_the_old(tmp_path: Path) -> None:
    good = model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("batch", 4)}, {"y": ("batch", 4)})
    onnx.save(good, tmp_path / "m.onnx")
    first = export(tmp_path / "m.onnx", output=tmp_path / "m.edge")
    (tmp_path / "bad.onnx").write_bytes(b"")
    with pytest.raises(ModelError):
        export(tmp_path / "bad.onnx", output=tmp_path / "m.edge", force=True)
    assert Package.open(first.path).manifest == first.manifest
    again = export(tmp_path / "m.onnx", output=tmp_path / "m.edge", force=True)
    assert Package.open(first.path).manifest == again.manifest
    with pytest.raises(PackageError):
        Package.open(tmp_path / "none.edge")


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    onnx.save(model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("n", 4)}, {"y": ("n", 4)}), tmp_path / "m.onnx")
    for result, says in (("{'top1': float('nan')}", "gave nan for 'top1'"), ("3", "returned int")):
        text = f"""
from edgekit import ModelSpec, TensorSpec
import numpy as np
SPEC = ModelSpec(name="m", build=lambda: {str(tmp_path / "m.onnx")!r}, inputs=(TensorSpec("x", "float32", ("n", 4)),),
    samples=lambda n, s: {{"x": np.ones((n, 4), np.float32)}}, evaluate=lambda run, n: {result})
"""
        (tmp_path / "r.py").write_text(text)
        with pytest.raises(RecipeError, match=says):
            export(tmp_path / "r.py", output=tmp_path / "m.edge")


def test_inputs_of_a_recipe_must_be_those_of_its_onnx_file(tmp_path: Path) -> None:
    onnx.save(model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("n", 4)}, {"y": ("n", 4)}), tmp_path / "m.onnx")
    (tmp_path / "r.py").write_text(
        f"from edgekit import ModelSpec, TensorSpec\nSPEC = ModelSpec(name='m', build=lambda: "
        f"{str(tmp_path / 'm.onnx')!r}, inputs=(TensorSpec('image', 'float32', ('n', 4)),))\n"
    )
    with pytest.raises(RecipeError, match=r"SPEC\.inputs of 'm' are image.*'m\.onnx' has x: float32"):
        export(tmp_path / "r.py", output=tmp_path / "m.edge")


def test_the_name_is_the_file_s_where_nothing_else_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("n", 4)}, {"y": ("n", 4)})
    onnx.save(proto, tmp_path / "my net.onnx")
    monkeypatch.chdir(tmp_path)
    package = export("my net.onnx")
    assert package.path == tmp_path / "my_net.edge"
    assert json.loads((package.path / "manifest.json").read_text())["name"] == "my_net"
    assert package.manifest.input_specs == (TensorSpec("x", "float32", ("batch", 4)),)
