"""Real files from several exporters and years, each imported and compared with itself as downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgekit.errors import CheckError, ModelError, UnsupportedOperatorError
from edgekit.export.build import export
from edgekit.export.declared import Declared
from edgekit.graphs import load_model, opset_of
from edgekit.runtime.ort import OrtSession
from tests.data import data_path
from tests.export.common import left_behind, model, operators, unfolded

REAL = {
    "clf_squeezenet11/squeezenet11_fp32.onnx": ("fp32", [1], "data_0: float32[1, 3, 224, 224]"),
    "clf_squeezenet11/squeezenet11_fp16.onnx": ("fp16", [1], "data_0: float16[1, 3, 224, 224]"),
    "det_ultraface/version-RFB-320.onnx": ("fp32", [1], "input: float32[1, 3, 240, 320]"),
    "det_ultraface/version-slim-320.onnx": ("fp32", [1], "input: float32[1, 3, 240, 320]"),
    "mnist_models/mnist_cntk_op8.onnx": ("fp32", [1], "Input3: float32[1, 1, 28, 28]"),
    "mnist_models/mnist_torch_op16.onnx": ("fp32", [1], "input.1: float32[1, 1, 28, 28]"),
    "mnist_models/rten/mnist.onnx": ("fp32", [1], "input: float32[1, 1, 28, 28]"),
    "mnist_models/rten/mnist-external/mnist.onnx": ("fp32", [1], "input: float32[1, 1, 28, 28]"),
    "audio_silero_vad/silero_vad_16k_op15.onnx": ("fp32", [1, 3, 8], "input: float32[batch, sequence]"),
    "tinyml_mlperf_tiny/kws_dscnn_float.onnx": ("fp32", [1, 3, 8], "input_1: float32[batch, 49, 10, 1]"),
    "tinyml_mlperf_tiny/kws_dscnn_int8_qdq.onnx": ("int8", [1, 3, 8], "input_1: int8[batch, 49, 10, 1]"),
    "tinyml_mlperf_tiny/resnet8_cifar.onnx": ("fp32", [1, 3, 8], "input_1: float32[batch, 32, 32, 3]"),
    "tinyml_mlperf_tiny/resnet8_cifar_int8_qdq.onnx": ("int8", [1, 3, 8], "input_1_int8: int8[batch, 32, 32, 3]"),
    "tinyml_mlperf_tiny/vww_mobilenet_float.onnx": ("fp32", [1, 3, 8], "input_1: float32[batch, 96, 96, 3]"),
    "sr_espcn_x3/superres_x3_core.onnx": ("fp32", [1, 3, 8], "_ppp5_expanded: float32[batch, 1, H, W]"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_import_and_equal_the_original(name: str, tmp_path: Path) -> None:
    precision, batches, first = REAL[name]
    package = export(data_path(name), output=tmp_path / "m.edge")
    manifest = package.manifest
    assert [v.id for v in manifest.variants] == [precision]
    assert [p.batch for p in manifest.provenance.parity] == batches
    assert str(manifest.input_specs[0]) == first
    assert manifest.provenance.opset == 18
    assert manifest.samples is not None
    assert manifest.samples.source == "synthetic"
    proto = load_model(package.model_file(package.reference))
    assert not {i.name for i in proto.graph.input} & {t.name for t in proto.graph.initializer}
    assert "Dropout" not in operators(proto)
    assert unfolded(proto) == []
    samples = package.samples()
    with OrtSession(package.model_file(package.reference)) as session:
        count = 1 if batches == [1] else samples.count
        feed = {
            s.name: samples.inputs[s.name][:count] if s.name == session.inputs[0].name else samples.inputs[s.name]
            for s in session.inputs
        }
        outputs = session.run(feed)
    for spec in manifest.output_specs:
        assert len(spec.shape) == outputs[spec.name].ndim
        got, want = outputs[spec.name], samples.outputs[spec.name][: len(outputs[spec.name])]
        np.testing.assert_allclose(got.astype(float), want.astype(float), atol=1e-2 if precision == "fp16" else 1e-5)


def test_candy_loses_the_operators_that_only_winml_had(tmp_path: Path) -> None:
    with Image.open(data_path("img_samples/grace_hopper.bmp")) as image:
        picture = np.asarray(image.convert("RGB").resize((720, 720)), np.float32)
    np.save(tmp_path / "picture.npy", picture.transpose(2, 0, 1)[None])  # one only: it takes a second
    path = data_path("style_fns/candy.onnx")
    package = export(path, output=tmp_path / "m.edge", samples=tmp_path / "picture.npy")
    assert [str(s) for s in package.manifest.input_specs] == ["inputImage: float32[batch, 3, 720, 720]"]
    assert not {"Crop", "Affine", "ImageScaler"} & set(operators(load_model(package.path / "fp32.onnx")))
    assert max(p.max_rel for p in package.manifest.provenance.parity) < 1e-5


def test_custom_operators_are_refused_by_name(tmp_path: Path) -> None:
    path = data_path("sr_espcn_x3/superres_x3_with_custom_pre_post_op18.onnx")
    with pytest.raises(
        UnsupportedOperatorError,
        match=r"com\.microsoft\.extensions::DecodeImage, com\.microsoft\.extensions::EncodeImage",
    ):
        export(path, output=tmp_path / "m.edge")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "clf_squeezenet11/squeezenet11_fp32.onnx",
        "det_ultraface/version-RFB-320.onnx",
        "mnist_models/mnist_cntk_op8.onnx",
        "mnist_models/mnist_torch_op16.onnx",
    ],
)
def test_a_batch_fixed_at_one_is_made_free_on_request(name: str, tmp_path: Path) -> None:
    package = export(data_path(name), output=tmp_path / "m.edge", dynamic_batch=True)
    manifest = package.manifest
    assert [p.batch for p in manifest.provenance.parity] == [1, 3, 8]
    assert all(s.shape[0] == "batch" for s in (*manifest.input_specs, *manifest.output_specs))


def test_a_batch_that_cannot_be_made_free_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axes"], ["y"], keepdims=1),
    ]
    proto = model(nodes, {"x": (1, 4)}, {"y": (1, 4)}, {"axes": np.array([0], np.int64)})  # sums over the samples
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(CheckError, match=r"Output 'y' has shape"):
        export(tmp_path / "m.onnx", output=tmp_path / "m.edge", dynamic_batch=True)
    assert left_behind(tmp_path) == []
    dynamic = model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("batch", 4)}, {"y": ("batch", 4)})
    onnx.save(dynamic, tmp_path / "d.onnx")
    with pytest.raises(ModelError, match="leave --dynamic-batch out"):
        export(tmp_path / "d.onnx", output=tmp_path / "d.edge", dynamic_batch=True)


def test_unnamed_dimensions_become_batch_and_names_of_their_own(tmp_path: Path) -> None:
    proto = model([helper.make_node("Abs", ["x"], ["y"])], {"x": ("None", "None", 3)}, {"y": ("?", "?", 3)})
    onnx.save(proto, tmp_path / "m.onnx")
    package = export(tmp_path / "m.onnx", output=tmp_path / "m.edge")
    assert package.manifest.input_specs[0].shape == ("batch", "x_1", 3)
    assert package.manifest.output_specs[0].shape[0] == "batch"


def test_an_operator_set_may_be_asked_for(tmp_path: Path) -> None:
    path = data_path("audio_silero_vad/silero_vad_16k_op15.onnx")
    asked = export(path, output=tmp_path / "m.edge", opset=19)
    assert asked.manifest.provenance.opset == 19
    kept = export(data_path("mnist_models/rten/mnist.onnx"), output=tmp_path / "k.edge", opset=13)
    assert kept.manifest.provenance.opset == 18  # never lowered


def test_weights_over_the_limit_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(64, 64)).astype(np.float32), "b": np.ones(64, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    proto = model(nodes, {"x": ("batch", 64)}, {"y": ("batch", 64)}, weights, opset=13)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    package = export(tmp_path / "m.onnx", output=tmp_path / "m.edge", external_bytes=1000)
    variant = package.reference
    assert [d.name for d in variant.data] == ["fp32.onnx.data"]
    assert variant.bytes == sum((package.path / n).stat().st_size for n in ("fp32.onnx", "fp32.onnx.data"))
    assert (package.path / "fp32.onnx").stat().st_size < 1000
    x = rng.normal(size=(2, 64)).astype(np.float32)
    with OrtSession(package.model_file(variant)) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weights["w"] + 1, atol=1e-4)
    assert opset_of(load_model(package.path / "fp32.onnx")) == 13  # a converter cannot take 2 GB
    assert any("kept in operator set 13" in n for n in package.manifest.provenance.notes)


def test_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    good = model([helper.make_node("Abs", ["x"], ["y"])], {"x": (1, 4)}, {"y": (1, 4)}, {"w": np.ones(999)})
    cases = {
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"hello, this is no model" * 20, "is not a readable ONNX file|holds no ONNX graph"),
        "truncated.onnx": (good.SerializeToString()[:-300], "is not a readable ONNX file"),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=says):
            export(tmp_path / name, output=tmp_path / "m.edge")
    with pytest.raises(ModelError, match="does not exist"):
        export(tmp_path / "none.onnx", output=tmp_path / "m.edge")
    assert left_behind(tmp_path) == []


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (4,)}, {"y": (4,)}, {"w": np.ones(4, np.float32)})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"External data of 'm\.onnx' cannot be read"):
        export(tmp_path / "m.onnx", output=tmp_path / "m.edge")


def test_types_that_no_tensor_carries_are_refused_by_name(tmp_path: Path) -> None:
    identity = [helper.make_node("Identity", ["x"], ["y"])]
    for kind, says in ((TensorProto.COMPLEX64, "'x' has ONNX element type 14"), (TensorProto.FLOAT8E4M3FN, "type 17")):
        onnx.save(model(identity, {"x": (1, 4)}, {"y": (1, 4)}, kind=kind, opset=19), tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=says):
            export(tmp_path / "m.onnx", output=tmp_path / "m.edge")
    sequence = model([helper.make_node("SequenceConstruct", ["x"], ["y"])], {"x": (1, 4)}, {"y": (1, 4)})
    del sequence.graph.output[:]
    sequence.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    onnx.save(sequence, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'y' is a sequence_type"):
        export(tmp_path / "m.onnx", output=tmp_path / "m.edge")


def test_nan_outputs_name_the_output(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "zero"], ["a"]), helper.make_node("Div", ["a", "a"], ["y"])]
    proto = model(nodes, {"x": ("batch", 4)}, {"y": ("batch", 4)}, {"zero": np.zeros(1, np.float32)})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(CheckError, match="Output 'y' of the original model holds NaN"):
        export(tmp_path / "m.onnx", output=tmp_path / "m.edge")
    assert left_behind(tmp_path) == []


def test_a_difference_above_the_tolerance_leaves_no_package(tmp_path: Path) -> None:
    path = data_path("det_ultraface/version-slim-320.onnx")  # folding BatchNorm moves the last bits
    with pytest.raises(CheckError, match=r"differs from the original by .* accepted is 1e-09"):
        export(path, output=tmp_path / "m.edge", tolerance=1e-9)
    assert left_behind(tmp_path) == []


def test_real_samples_labels_and_preprocessing_from_files(tmp_path: Path) -> None:
    labels = "\n".join(data_path("img_samples/imagenet_labels.txt").read_text().splitlines()[1:])
    (tmp_path / "labels.txt").write_text(labels)
    (tmp_path / "pre.json").write_text(
        '{"data_0": {"kind": "image", "height": 224, "width": 224, "color": "BGR", "resize": "crop", "scale": 1.0,'
        ' "mean": [103.94, 116.78, 123.68]}}'
    )
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("grace_hopper.bmp", "cat.bmp", "parrot.jpg"):
        (folder / name).write_bytes(data_path(f"img_samples/{name}").read_bytes())
    package = export(
        data_path("clf_squeezenet11/squeezenet11_fp32.onnx"),
        output=tmp_path / "m.edge",
        declared=Declared(name="squeezenet", labels=tmp_path / "labels.txt", preprocess=tmp_path / "pre.json"),
        samples=folder,
    )
    assert (package.name, package.manifest.task) == ("squeezenet", "classification")
    samples = package.samples()
    assert (samples.source, samples.count) == ("file", 3)
    found = {package.labels()[i] for i in samples.outputs["softmaxout_1"].reshape(3, -1).argmax(axis=1)}
    assert {"Egyptian cat", "macaw"} <= found
    assert package.reference.accuracy is not None
    assert package.reference.accuracy.agreement == 1.0
