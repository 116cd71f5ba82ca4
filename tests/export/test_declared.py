from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.export.declared import Declared, check_labels
from edgekit.preprocess import ImagePreprocess
from edgekit.recipe import ModelSpec
from edgekit.tensors import TensorSpec

SPEC = ModelSpec(name="net", build=object, inputs=(TensorSpec("image", "float32", ("batch", 3, 8, 8)),))


def test_labels_make_a_classification_and_preprocessing_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n\n")
    (tmp_path / "pre.json").write_text('{"image": {"kind": "image", "height": 8, "width": 8, "color": "BGR"}}')
    declared = Declared(name="pets", labels=tmp_path / "labels.txt", preprocess=tmp_path / "pre.json")
    spec = declared.over(SPEC)
    assert (spec.name, spec.labels, spec.task) == ("pets", ("cat", "dog"), "classification")
    assert spec.preprocess == {"image": ImagePreprocess(height=8, width=8, color="BGR")}
    assert Declared().over(SPEC) is SPEC


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not usable"),
        ('{"image": {"kind": "image", "height": 8}}', "missing required field `width`"),
        ('{"image": {"kind": "image", "height": 0, "width": 8}}', "image size must be positive"),
        ('{"image": {"kind": "video"}}', "is not usable"),
    ],
)
def test_bad_preprocessing_is_explained(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "pre.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        Declared(preprocess=tmp_path / "pre.json").over(SPEC)


def test_bad_labels_are_explained(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="are empty"):
        Declared(labels=tmp_path / "empty").over(SPEC)
    with pytest.raises(UsageError, match="cannot be read as UTF-8"):
        Declared(labels=tmp_path / "binary").over(SPEC)
    with pytest.raises(UsageError, match="cannot be read"):
        Declared(labels=tmp_path / "none").over(SPEC)


def test_one_label_a_class(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    spec = Declared(labels=tmp_path / "labels.txt").over(SPEC)
    check_labels(spec, TensorSpec("y", "float32", ("batch", 2, 1, 1)))
    with pytest.raises(UsageError, match=r"has 2 labels, its output 'y' is \(batch,3\)"):
        check_labels(spec, TensorSpec("y", "float32", ("batch", 3)))
