from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CheckError
from edgekit.export.parity import accuracy, check_within, default_tolerance, parity
from edgekit.manifest import Parity
from edgekit.tensors import TensorSpec

X = TensorSpec("x", "float32", ("batch", 2))
Y = TensorSpec("y", "float32", ("batch", 2))
SAMPLES = {"x": np.arange(1, 21, dtype=np.float32).reshape(10, 2)}


def original(feed):
    return {"y": feed["x"] * 2}


def test_differences_are_absolute_and_relative_to_the_largest_output() -> None:
    rows = parity(original, lambda f: {"y": f["x"] * 2 + np.float32(0.5)}, SAMPLES, [X], [Y])
    assert [r.batch for r in rows] == [1, 3, 8]
    assert [r.max_abs for r in rows] == [0.5, 0.5, 0.5]
    assert [r.max_rel for r in rows] == [0.5 / 4, 0.5 / 12, 0.5 / 32]


def test_an_error_of_one_batch_size_only_is_found() -> None:
    rows = parity(original, lambda f: {"y": f["x"] * (2.5 if len(f["x"]) == 3 else 2)}, SAMPLES, [X], [Y])
    assert [round(r.max_rel, 3) for r in rows] == [0, 0.25, 0]
    with pytest.raises(CheckError, match=r"differs from the original by 0.25 of the largest output at batch 3"):
        check_within(rows, 1e-4)


def test_fewer_samples_mean_fewer_batches() -> None:
    few = {"x": SAMPLES["x"][:2]}
    assert [r.batch for r in parity(original, original, few, [X], [Y])] == [1, 2]


def test_a_fixed_batch_is_compared_block_by_block() -> None:
    x, y = TensorSpec("x", "float32", (2, 2)), TensorSpec("y", "float32", (2, 2))
    seen = []

    def count(feed):
        seen.append(feed["x"].shape)
        return original(feed)

    (row,) = parity(original, count, SAMPLES, [x], [y])
    assert row == Parity(batch=2, max_abs=0, max_rel=0)
    assert seen == [(2, 2)] * 5


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_nan_and_infinity_name_output_and_side(value: float, what: str) -> None:
    with pytest.raises(CheckError, match=f"Output 'y' of the original model holds {what}"):
        parity(lambda f: {"y": f["x"] * value}, original, SAMPLES, [X], [Y])
    with pytest.raises(CheckError, match=f"Output 'y' of the exported model holds {what}"):
        parity(original, lambda f: {"y": f["x"] * value}, SAMPLES, [X], [Y])


def test_another_shape_is_a_sentence() -> None:
    with pytest.raises(CheckError, match=r"Output 'y' has shape \(1,1\) in ONNX Runtime and \(1,2\) in the original"):
        parity(original, lambda f: {"y": f["x"][:, :1]}, SAMPLES, [X], [Y])


def test_bfloat16_bits_are_compared_as_numbers() -> None:
    y = TensorSpec("y", "bfloat16", ("batch", 2))
    one, two = np.uint16(0x3F80), np.uint16(0x4000)
    rows = parity(
        lambda f: {"y": np.full(f["x"].shape, one)}, lambda f: {"y": np.full(f["x"].shape, two)}, SAMPLES, [X], [y]
    )
    assert rows[0].max_abs == 1.0


def test_accuracy_counts_the_classes_that_stay() -> None:
    want = {"y": np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)}
    got = {"y": np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)}
    result = accuracy(want, got, [Y], count=4, classification=True)
    assert (result.agreement, result.max_abs, result.samples) == (0.75, 1.0, 4)
    assert result.cosine == pytest.approx(0.75)
    assert accuracy(want, want, [Y], count=4, classification=False).agreement is None


def test_tolerance_follows_the_coarsest_type() -> None:
    assert default_tolerance(["float32", "int64"]) == 1e-4
    assert default_tolerance(["float32", "float16"]) == 1e-2
