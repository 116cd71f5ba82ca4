from __future__ import annotations

import json
import sys

import pytest

from edgekit.cli.inspect import count_text
from edgekit.cli.main import main
from edgekit.manifest import Accuracy, Parity, Provenance, SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.preprocess import AudioPreprocess, ImagePreprocess
from edgekit.tensors import TensorSpec
from tests.tiny import tiny_manifest, tiny_model


def test_a_package_is_told_in_full(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny.path), "--layers"]) == 0
    out = capsys.readouterr().out
    for words in (
        "tiny 1, classification",
        "x: float32[batch, 4]",
        "scores: float32[batch, 3]",
        "16, from recipe",
        "every SHA-256 matches",
        "12 parameters",
        "FLOPs of one sample: 24",
        "MatMul",
        "opset 18",
    ):
        assert words in out
    assert out.index("fp32") < out.index("int8")


def test_preprocessing_states_parity_and_accuracy_are_shown(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_manifest(
        inputs=tuple(Tensor.of(TensorSpec(n, "float32", ("batch", 4))) for n in ("x", "sound", "h", "rate")),
        preprocess={
            "x": ImagePreprocess(height=8, width=9, mean=(0.5, 0.5, 0.25)),
            "sound": AudioPreprocess(sample_rate=16000, samples=512),
        },
        states={"h": "scores"},
        defaults={"rate": 16000},
        samples=SampleSet(count=2, source="recipe"),
        description="three colours",
        license="MIT",
        provenance=Provenance(
            tool="edgekit 0.1",
            source="tiny.py",
            source_sha256="a" * 64,
            framework="torch 2.13.0",
            opset=18,
            created="2026-01-01",
            parity=(Parity(batch=1, max_abs=1.5e-7, max_rel=1e-6), Parity(batch=3, max_abs=3e-7, max_rel=1e-6)),
            notes=("BatchNorm folded",),
        ),
    )
    accuracy = Accuracy(samples=2, max_abs=0.125, cosine=1.0, agreement=0.5, metrics={"top1": 0.75}, metric_samples=9)
    with create(tiny.path, force=True) as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model().SerializeToString())
        fields = {"precision": "fp32", "format": "onnx", "target": "any", "plugins": ("edgekit::swish",)}
        writer.put(writer.variant_of("fp32.onnx", id="fp32", accuracy=accuracy, **fields))
        package = writer.commit(manifest)
    assert main(["inspect", str(package.path)]) == 0
    out = capsys.readouterr().out
    for words in (
        "an image: RGB 8x9 NCHW",
        "mean 0.5/0.5/0.25",
        "a WAV file: 16000 Hz mono, 512 samples",
        "state, fed by scores",
        "default 16000",
        "largest difference to torch 2.13.0: 1.5e-07 at batch 1, 3e-07 at batch 3",
        "BatchNorm folded",
        "three colours",
        "MIT",
        "top1",
        "0.75",
        "50.00 %",
        "edgekit::swish",
    ):
        assert words in out


def test_a_bare_model_is_told(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny.path / "fp32.onnx")]) == 0
    out = capsys.readouterr().out
    assert "x: float32[batch, 4]" in out
    assert "12 parameters" in out
    assert main(["inspect", str(tiny.path / "fp32.onnx"), "--variant", "fp32"]) == 2
    assert "--variant is for packages" in capsys.readouterr().err


def test_json_has_layers_when_asked(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["name"] == "tiny"
    assert document["graph"]["layers"] == []
    assert main(["inspect", str(tiny.path), "--json", "--layers", "--variant", "int8"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["graph"]["layers"]
    assert (layer["op"], layer["shape"], layer["weights"], layer["weight_bytes"]) == ("MatMul", [1, 3], "float32", 48)


def test_a_changed_byte_is_exit_one_and_named(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.path / "labels.txt"
    path.write_bytes(b"red\ngreen\nblux\n")
    assert main(["inspect", str(tiny.path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "labels.txt" in err


@pytest.mark.parametrize("path", ["absent.edge", "absent.onnx", "."])
def test_what_cannot_be_inspected_is_exit_two(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_onnx_the_note_says_what_to_install(
    tiny: Package, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["inspect", str(tiny.path), "--layers"]) == 0
    out = capsys.readouterr().out
    assert "every SHA-256 matches" in out
    assert "pip install 'edgekit[export]'" in out


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (512, "512"), (1000, "1 k"), (1_235_496, "1.24 M"), (698_000_000, "698 M"), (5.1e9, "5.1 G")],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert count_text(count) == text
