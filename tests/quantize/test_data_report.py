from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.preprocess import ImagePreprocess
from edgekit.quantize.data_report import CalibrationReport, calibration_report
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of
from tests.quantize.test_data import recipe
from tests.quantize.test_qdq import data_of


def report(tmp_path: Path, x: np.ndarray, **options: object) -> CalibrationReport:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(4)})
    return calibration_report(package, prepared(conv_net()), data_of(x), **options)  # type: ignore[arg-type]


def test_good_data_have_no_problems(tmp_path: Path) -> None:
    found = report(tmp_path, images(256), recipe=recipe())
    assert found.problems == ()
    assert found.samples == 256
    assert found.median_shift is not None
    assert found.median_shift < 0.05


def test_too_few_samples(tmp_path: Path) -> None:
    growing = images(4) * np.array([1, 1, 2, 4], np.float32).reshape(4, 1, 1, 1)
    assert "Scales still move" in " ".join(report(tmp_path, growing).problems)


def test_one_sample(tmp_path: Path) -> None:
    assert "one sample" in " ".join(report(tmp_path, images(1)).problems)


def test_duplicates_constants_and_clipping_are_named(tmp_path: Path) -> None:
    twice = np.concatenate([images(64), images(64)])
    found = report(tmp_path, twice)
    assert found.duplicates == 64
    assert "64 of 128 samples are there twice" in " ".join(found.problems)


def test_clipped_inputs(tmp_path: Path) -> None:
    assert "is it clipped" in " ".join(report(tmp_path, np.minimum(images(64), 0)).problems)


def test_constant_inputs(tmp_path: Path) -> None:
    assert "is 1 everywhere" in " ".join(report(tmp_path, np.ones((4, 3, 12, 12), np.float32)).problems)


def test_data_unlike_the_recipes(tmp_path: Path) -> None:
    found = report(tmp_path, images(64) * 127 + 127, recipe=recipe())
    assert "Is the preprocessing the recipe's?" in " ".join(found.problems)


def test_another_preprocessing_than_the_recipes(tmp_path: Path) -> None:
    other = recipe(preprocess={"x": ImagePreprocess(height=12, width=12)})
    assert "preprocessing is not the recipe's" in " ".join(report(tmp_path, images(64), recipe=other).problems)
