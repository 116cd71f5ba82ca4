"""Scenes of digits: their labels are exact."""

from __future__ import annotations

import numpy as np
import pytest

from _scenes import Scenes, digit_scenes, photo_digits
from edgekit import ImagePreprocess


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return digit_scenes(40, seed=0, size=64, objects=(1, 4), background="plain")


def test_boxes_enclose_what_can_be_seen(scenes: Scenes) -> None:
    for masks, boxes, classes in zip(scenes.masks, scenes.boxes, scenes.classes):
        for mask, box, label in zip(masks, boxes, classes):
            if label < 0:
                assert not mask.any()
                assert not box.any()
                continue
            y, x = np.nonzero(mask)
            assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == tuple(box)


def test_a_pixel_shows_one_object_and_ink_is_labelled(scenes: Scenes) -> None:
    assert scenes.masks.sum(axis=1).max() == 1
    shown = scenes.masks.any(axis=1)
    assert scenes.images[shown].min() > 80
    assert scenes.images[~shown].mean() < 20, "what no mask covers is background and the soft rims of strokes"


def test_key_points_turn_with_the_digit(scenes: Scenes) -> None:
    real = scenes.classes >= 0
    centre, top, right, bottom, left = np.moveaxis(scenes.points[real][:, :, :2], 1, 0)
    np.testing.assert_allclose((top + bottom) / 2, centre, atol=1e-3)
    np.testing.assert_allclose((left + right) / 2, centre, atol=1e-3)
    up = top - centre
    np.testing.assert_allclose(np.arctan2(up[:, 0], -up[:, 1]), scenes.angles[real], atol=1e-4)


def test_the_first_places_are_taken(scenes: Scenes) -> None:
    counts = (scenes.classes >= 0).sum(axis=1)
    assert set(counts) >= {1, 2}
    for classes, count in zip(scenes.classes, counts):
        assert (classes[:count] >= 0).all()


def test_the_same_arguments_give_the_same_scenes_and_tests_other_ones() -> None:
    one, again, test = (digit_scenes(3, 1, 48, test=t, colour=True) for t in (False, False, True))
    assert one.images.shape == (3, 48, 48, 3)
    for a, b in zip(one, again):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.images, test.images)


def test_single_digits_are_a_classifiers_input() -> None:
    images, labels = photo_digits(30, 0, ImagePreprocess(height=32, width=32, mean=(0.5,), std=(0.5,)))
    assert images.shape == (30, 3, 32, 32)
    assert images.dtype == np.float32
    assert -1 <= images.min() < images.max() <= 1
    assert set(labels) <= set(range(10))
