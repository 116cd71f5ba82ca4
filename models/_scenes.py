"""Scenes composed of real digits, with exact labels: boxes, classes, masks of instances and key points.

scikit-learn's handwritten digits are scaled, turned and laid over a background, one after the other; a later one may
hide a part of an earlier one. Labels follow from how the scene was made, so they are exact: a mask is what can be seen
of its digit.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from _data import digit_pictures, photo_crops
from edgekit import ImagePreprocess

KEY_POINTS = ("centre", "top", "right", "bottom", "left")
"""Of the digit's upright frame: its middle and the middles of its sides, which turn with the digit."""


class Scenes(NamedTuple):
    """`n` scenes of up to `m` objects; places beyond an image's last object are zero, their class is -1.

    Attributes:
        images: uint8 (n, size, size), or (n, size, size, 3) in colour.
        boxes: float32 (n, m, 4): left, top, right, bottom in pixels, the last two exclusive, around what can be seen.
        classes: int64 (n, m): the digit, or -1.
        masks: bool (n, m, size, size): the pixels that show the object.
        points: float32 (n, m, 5, 3): x, y in pixels and 1 if the point lies inside the image, for each of KEY_POINTS.
        angles: float32 (n, m): how far the digit is turned, radians, clockwise on the screen.
    """

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    points: np.ndarray
    angles: np.ndarray


def digit_scenes(
    n: int,
    seed: int,
    size: int = 96,
    *,
    test: bool = False,
    objects: tuple[int, int] = (1, 4),
    sides: tuple[float, float] = (0.2, 0.45),
    turn: float = 0.5,
    background: Literal["plain", "photo"] = "photo",
    colour: bool = False,
) -> Scenes:
    """`n` scenes; the same arguments give the same ones.

    Args:
        n: number of scenes.
        seed: what they are drawn by.
        size: height and width of an image, pixels.
        test: whether digits and backgrounds come from the test part of the data.
        objects: fewest and most digits in a scene.
        sides: smallest and largest height of a digit, as a part of `size`.
        turn: largest angle by which a digit is turned, radians.
        background: black, or dimmed cuts of photographs.
        colour: images in RGB, each digit in a colour of its own, instead of grey.
    """
    random = np.random.default_rng((seed, size, test))
    split = digit_pictures()
    pictures, labels = (split.test, split.test_labels) if test else (split.train, split.train_labels)
    most = objects[1]
    out = Scenes(
        images=np.zeros((n, size, size, 3), np.uint8),
        boxes=np.zeros((n, most, 4), np.float32),
        classes=np.full((n, most), -1, np.int64),
        masks=np.zeros((n, most, size, size), bool),
        points=np.zeros((n, most, len(KEY_POINTS), 3), np.float32),
        angles=np.zeros((n, most), np.float32),
    )
    if background == "photo":
        out.images[:] = photo_crops(n, seed, size, test=test) * 0.4
        if not colour:
            out.images[:] = out.images.mean(axis=3, keepdims=True)
    for i in range(n):
        centres: list[tuple[float, float, float]] = []
        for j in range(int(random.integers(objects[0], most + 1))):
            side = float(random.uniform(*sides)) * size
            for _ in range(20):  # a place that does not hide the middle of another digit
                x, y = random.uniform(0.4 * side, size - 0.4 * side, 2)
                if all(np.hypot(x - u, y - v) > 0.5 * (side + other) for u, v, other in centres):
                    break
            else:
                continue
            centres.append((x, y, side))
            which, angle = int(random.integers(len(pictures))), float(random.uniform(-turn, turn))
            ink, points = _placed(pictures[which], size, x, y, side, angle)
            shade = random.uniform(60, 255, 3) if colour else np.full(3, random.uniform(170, 255))
            out.images[i] = out.images[i] * (1 - ink[..., None]) + shade * ink[..., None]
            out.masks[i, :j] &= ~(ink > 0.5)
            out.masks[i, j] = ink > 0.5
            out.points[i, j], out.angles[i, j], out.classes[i, j] = points, angle, labels[which]
        _label(out, i)
    return out if colour else out._replace(images=out.images[..., 0])


def _placed(
    picture: np.ndarray, size: int, x: float, y: float, side: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """How much ink (0 to 1) the digit leaves on each pixel of the scene, and its key points."""
    columns = np.flatnonzero((picture > 60).any(axis=0))
    left, right = float(columns[0]), float(columns[-1] + 1)  # all pictures fill the 8 rows
    scale, cos, sin = side / 8, np.cos(angle), np.sin(angle)
    middle = (left + right) / 2
    # PIL asks for the way back: from a pixel of the scene to one of the picture
    a, b, d, e = cos / scale, sin / scale, -sin / scale, cos / scale
    back = (a, b, middle - a * x - b * y, d, e, 4 - d * x - e * y)
    padded = Image.fromarray(np.pad(picture, 4))
    shifted = (*back[:2], back[2] + 4, *back[3:5], back[5] + 4)
    ink = padded.transform((size, size), Image.Transform.AFFINE, shifted, Image.Resampling.BICUBIC)
    half = (right - left) / 2
    frame = np.array([(0, 0), (0, -4), (half, 0), (0, 4), (-half, 0)]) * scale
    placed = frame @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    inside = ((placed >= 0) & (placed < size)).all(axis=1, keepdims=True)
    sharp = np.clip(np.asarray(ink, np.float32) / 160, 0, 1)
    return sharp, np.concatenate([placed, inside], axis=1).astype(np.float32)


def _label(scenes: Scenes, i: int) -> None:
    """Boxes of scene `i` from its masks; objects of which almost nothing can be seen are left out, the rest move up."""
    seen = [j for j in range(scenes.classes.shape[1]) if scenes.masks[i, j].sum() >= 12]
    for array in (scenes.classes, scenes.masks, scenes.points, scenes.angles):
        kept = array[i, seen].copy()
        array[i] = -1 if array is scenes.classes else 0
        array[i, : len(seen)] = kept
    for j in range(len(seen)):
        rows, columns = np.flatnonzero(scenes.masks[i, j].any(axis=1)), np.flatnonzero(scenes.masks[i, j].any(axis=0))
        scenes.boxes[i, j] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@cache
def photo_digits(
    n: int,
    seed: int,
    preprocess: ImagePreprocess,
    *,
    test: bool = False,
    background: Literal["plain", "photo"] = "photo",
) -> tuple[np.ndarray, np.ndarray]:
    """`n` pictures of one coloured digit over a photograph, as `preprocess` makes a model's input of them, and labels.

    An image classifier's task that needs no download: float32 (n, 3, height, width), int64 (n,).
    """
    scenes = digit_scenes(
        n, seed, preprocess.height, test=test, objects=(1, 1), sides=(0.5, 0.9), background=background, colour=True
    )
    return np.concatenate([preprocess.from_pixels(image) for image in scenes.images]), scenes.classes[:, 0]
