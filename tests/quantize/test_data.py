from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import InputError, RecipeError, UsageError
from edgekit.preprocess import ImagePreprocess
from edgekit.quantize.data import CalibrationData, calibration_data
from edgekit.recipe import ModelSpec
from edgekit.tensors import TensorSpec
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of

SPEC = TensorSpec("x", "float32", ("batch", 3, 12, 12))


def recipe(**fields: object) -> ModelSpec:
    values = {
        "name": "net",
        "build": lambda: None,
        "inputs": (SPEC,),
        "samples": lambda n, seed: {"x": images(n, seed)},
    }
    return ModelSpec(**{**values, **fields})  # type: ignore[arg-type]


def test_the_packages_own_samples(tmp_path: Path) -> None:
    data = calibration_data(package_of(tmp_path / "net.edge", conv_net(), {"x": images(20)}))
    assert data.count == 20
    assert np.array_equal(data.inputs["x"], images(20))


def test_synthetic_samples_are_refused(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(20)}, source="synthetic")
    with pytest.raises(UsageError, match=r"only synthetic samples.*--calib"):
        calibration_data(package)


def test_no_samples_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no samples"):
        calibration_data(package_of(tmp_path / "net.edge", conv_net()))


def test_a_recipe_comes_before_the_packages_samples(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(20)})
    data = calibration_data(package, recipe=recipe(), samples=7)
    assert data.count == 7
    assert "recipe 'net'" in data.source


def test_a_recipe_of_another_model_is_named(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(4)})
    with pytest.raises(UsageError, match="Give the recipe that the package was exported from"):
        calibration_data(package, recipe=recipe(inputs=(TensorSpec("z", "float32", ("batch", 3)),)))


def test_a_recipe_that_raises(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(4)})
    with pytest.raises(RecipeError, match="ZeroDivisionError"):
        calibration_data(package, recipe=recipe(samples=lambda n, seed: 1 / 0))


def test_an_npz_file(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net())
    np.savez(tmp_path / "real.npz", x=images(9))
    assert calibration_data(package, calib=tmp_path / "real.npz").count == 9
    assert calibration_data(package, calib=tmp_path / "real.npz", samples=4).count == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": images(3), "z": images(3)}, "lacks input 'x'"),
        ({"x": images(3).astype(np.float64)}, "got float64, this model accepts float32"),
        ({"x": images(3)[:, :2]}, r"accepts \(batch,3,12,12\)"),
        ({"x": images(3) * np.nan}, "NaN"),
    ],
)
def test_an_npz_file_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    package = package_of(tmp_path / "net.edge", conv_net())
    np.savez(tmp_path / "real.npz", **arrays)
    with pytest.raises(InputError, match=message):
        calibration_data(package, calib=tmp_path / "real.npz")


def test_files_that_are_not_data(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net())
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        calibration_data(package, calib=tmp_path / "bad.npz")
    with pytest.raises(UsageError, match="holds no input files"):
        calibration_data(package, calib=tmp_path / "empty")
    with pytest.raises(UsageError, match="does not exist"):
        calibration_data(package, calib=tmp_path / "missing")
    with pytest.raises(UsageError, match="neither a folder nor"):
        calibration_data(package, calib=tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="--samples 0"):
        calibration_data(package, calib=tmp_path / "empty", samples=0)


def test_a_pickle_inside_an_npz_is_not_executed(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net())
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        calibration_data(package, calib=tmp_path / "evil.npz")


def test_a_folder_of_images_goes_through_the_packages_preprocessing(tmp_path: Path) -> None:
    preprocess = ImagePreprocess(height=12, width=12)
    package = package_of(tmp_path / "net.edge", conv_net(), preprocess={"x": preprocess})
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 20), (i * 40, 0, 255 * (label == "b"))).save(tmp_path / f"photos/{label}/{i}.png")
    data = calibration_data(package, calib=tmp_path / "photos", samples=6)
    assert data.inputs["x"].shape == (6, 3, 12, 12)
    assert 0 < data.inputs["x"][:, 2].mean() < 1, "files are taken evenly over the folder, not the first class only"


def test_a_folder_of_images_without_preprocessing(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net())
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="declares no preprocessing"):
        calibration_data(package, calib=tmp_path)


def test_rows_are_split_apart_when_there_are_enough() -> None:
    data = CalibrationData((SPEC,), {"x": images(80)}, 80, "test")
    used, judged = data.split()
    assert (used.count, judged.count) == (60, 20)
    few = CalibrationData((SPEC,), {"x": images(40)}, 40, "test")  # a fourth of so few would judge by chance
    assert few.split() == (few, few)


def test_the_digest_tells_data_apart() -> None:
    first = CalibrationData((SPEC,), {"x": images(4)}, 4, "a")
    assert first.digest == CalibrationData((SPEC,), {"x": images(4)}, 4, "b").digest
    assert first.digest != CalibrationData((SPEC,), {"x": images(4, seed=1)}, 4, "a").digest
