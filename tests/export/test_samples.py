from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import InputError, RecipeError, UsageError
from edgekit.export.samples import KEEP_BYTES, affordable_rows, draw
from edgekit.preprocess import ImagePreprocess
from edgekit.recipe import ModelSpec
from edgekit.tensors import TensorSpec

X = TensorSpec("x", "float32", ("batch", 3, 4, 4))


def spec(*inputs: TensorSpec, **fields) -> ModelSpec:
    return ModelSpec(name="net", build=object, inputs=inputs or (X,), **fields)


def test_recipe_samples_are_real_and_up_to_256() -> None:
    drawn = draw(spec(samples=lambda n, seed: {"x": np.full((n, 3, 4, 4), seed, np.float32)}), None)
    assert (drawn.source, drawn.count, drawn.inputs["x"].shape) == ("recipe", 256, (256, 3, 4, 4))


def test_a_recipe_may_have_fewer_but_not_none() -> None:
    few = draw(spec(samples=lambda n, seed: {"x": np.zeros((3, 3, 4, 4), np.float32)}), None)
    assert few.count == 3
    with pytest.raises(InputError, match="are empty"):
        draw(spec(samples=lambda n, seed: {"x": np.zeros((0, 3, 4, 4), np.float32)}), None)


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda n, s: {"x": np.zeros((n, 3, 5, 4), np.float32)}, r"got \(256,3,5,4\)"),
        (lambda n, s: {"x": np.zeros((n, 3, 4, 4))}, "got float64"),
        (lambda n, s: {"y": np.zeros((n, 3, 4, 4), np.float32)}, "'y' is not an input"),
        (lambda n, s: np.zeros(3), "returned ndarray"),
        (lambda n, s: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_samples_that_do_not_fit_name_the_recipe(give, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"samples of recipe 'net' .*{says}"):
        draw(spec(samples=give), None)


def test_nan_samples_are_refused() -> None:
    with pytest.raises(InputError, match="'x' hold NaN"):
        draw(spec(samples=lambda n, seed: {"x": np.full((n, 3, 4, 4), np.nan, np.float32)}), None)


def test_rows_kept_stay_within_16_mib() -> None:
    assert affordable_rows(100) == 256
    assert affordable_rows(KEEP_BYTES // 10) == 10
    assert affordable_rows(10 * KEEP_BYTES) == 1


def test_without_anything_real_samples_are_synthetic_and_repeat() -> None:
    inputs = (X, TensorSpec("ids", "int64", ("batch", "time")), TensorSpec("on", "bool", ("batch",)))
    one, two = draw(spec(*inputs), None), draw(spec(*inputs), None)
    assert one.source == "synthetic"
    assert one.inputs["ids"].shape[1] == 32
    for name in one.inputs:
        np.testing.assert_array_equal(one.inputs[name], two.inputs[name])


def test_synthetic_images_are_pixels_through_the_declared_preprocessing() -> None:
    how = ImagePreprocess(height=4, width=4, scale=1.0)
    image = draw(spec(preprocess={"x": how}), None).inputs["x"]
    assert image.min() >= 0
    assert 200 < image.max() <= 255


def test_states_start_at_zero_and_defaults_are_filled_in() -> None:
    inputs = (
        TensorSpec("x", "float32", ("batch", 2)),
        TensorSpec("h", "float32", (2, "batch", 5)),
        TensorSpec("rate", "int64", ()),
    )
    recipe = spec(
        *inputs,
        samples=lambda n, seed: {"x": np.ones((n, 2), np.float32)},
        states={"h": "h_out"},
        defaults={"rate": np.int64(16000)},
    )
    drawn = draw(recipe, None)
    assert drawn.inputs["h"].shape == (2, 256, 5)
    assert not drawn.inputs["h"].any()
    assert drawn.inputs["rate"] == 16000
    assert drawn.inputs["rate"].shape == ()
    assert drawn.first(3, inputs).inputs["h"].shape == (2, 3, 5)


def test_a_fixed_batch_gets_blocks() -> None:
    fixed = TensorSpec("x", "float32", (2, 3))
    drawn = draw(spec(fixed, samples=lambda n, seed: {"x": np.zeros((2 * n, 3), np.float32)}), None)
    assert drawn.count == 256
    assert drawn.inputs["x"].shape == (512, 3)


def test_npz_by_name_and_npy_for_the_only_input(tmp_path: Path) -> None:
    rows = np.arange(5 * 48, dtype=np.float32).reshape(5, 3, 4, 4)
    np.savez(tmp_path / "a.npz", x=rows)
    np.save(tmp_path / "a.npy", rows)
    for name in ("a.npz", "a.npy"):
        drawn = draw(spec(), tmp_path / name)
        assert (drawn.source, drawn.count) == ("file", 5)
        np.testing.assert_array_equal(drawn.inputs["x"], rows)


def test_a_folder_of_images_goes_through_the_preprocessing(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (10, 10), (i, i, i)).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    how = ImagePreprocess(height=4, width=4, scale=1.0)
    drawn = draw(spec(preprocess={"x": how}), tmp_path)
    assert sorted(drawn.inputs["x"][:, 0, 0, 0]) == [0, 1, 2, 3]


def test_unusable_files_are_explained(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    (tmp_path / "pickle.npy").write_bytes(b"")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "notes.txt").write_text("hello")
    how = {"x": ImagePreprocess(height=4, width=4)}
    for name, error, says in [
        ("bad.npz", InputError, "not a readable numpy file"),
        ("pickle.npy", InputError, "not a readable numpy file"),
        ("object.npy", InputError, "not a readable numpy file"),
        ("notes.txt", UsageError, "expected .npz"),
        ("none.npz", UsageError, "do not exist"),
    ]:
        with pytest.raises(error, match=says):
            draw(spec(), tmp_path / name)
    with pytest.raises(UsageError, match="needs preprocessing"):
        draw(spec(), tmp_path)
    with pytest.raises(UsageError, match="holds no images"):
        draw(spec(preprocess=how), tmp_path)
