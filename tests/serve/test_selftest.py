"""A clearly wrong model is not served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import CheckError
from edgekit.package import create
from edgekit.serve.library import load_models
from edgekit.serve.loading import model_from_package
from edgekit.serve.options import ModelOptions
from edgekit.serve.selftest import wrong_output
from tests.tiny import WEIGHT, tiny_manifest, tiny_model, tiny_package

A = np.array([1, 2, 3], np.float32)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ({}, "has no output 'y'"),
        ({"y": A * np.float32(np.nan)}, "NaN or infinity"),
        ({"y": A * 2}, "differs by 1 times"),
        ({"y": A * 1.04}, ""),
        ({"y": A.astype(np.float16)}, ""),
        ({"y": A[:2]}, ""),  # as many detections as it likes
        ({"y": np.array([3, 2, 1])}, ""),
    ],
)
def test_what_is_clearly_wrong(got: dict[str, np.ndarray], words: str) -> None:
    found = wrong_output(got, {"y": A}, limit=0.05)
    assert words in found
    assert bool(words) == bool(found)


def test_references_that_are_zero_or_not_finite() -> None:
    zero, hole = np.zeros(2, np.float32), np.array([1, np.nan], np.float32)
    assert not wrong_output({"y": zero}, {"y": zero}, limit=0.05)
    assert "where the reference is 0" in wrong_output({"y": zero + 1}, {"y": zero}, limit=0.05)
    assert not wrong_output({"y": hole}, {"y": hole}, limit=0.05)


def test_a_variant_with_other_weights_is_refused_and_its_sibling_is_not(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny.edge")
    with package.edit() as writer:
        writer.path("int8.onnx").write_bytes(tiny_model(-WEIGHT).SerializeToString())
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        package = writer.commit()
    with pytest.raises(CheckError, match=r"'int8' of 'tiny.edge' is not served: output 'scores' differs"):
        load_models([package.path])
    model = model_from_package(package, options=ModelOptions(variant="fp32"))
    assert model.session.variant == "fp32"
    model.close()


def test_a_package_without_samples_says_that_it_was_not_tested(tmp_path: Path) -> None:
    with create(tmp_path / "bare.edge") as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model().SerializeToString())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        package = writer.commit(tiny_manifest("bare"))
    model = model_from_package(package)
    assert "not self-tested" in str(model)
    assert not model.worker.inline
    model.close()
