"""Between a detector and what looks at its findings: boxes of a picture, as pictures of one size."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.errors import InputError
from edgekit.tensors import Array, Feed, Tensors

_Side = Annotated[int, Meta(ge=1, le=8192)]


class Crop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cuts boxes out of one picture and brings them to one size.

    `image` is (1, C, H, W) and `boxes` (n, 4) or (1, n, 4): left, top, right, bottom, as shares of width and height,
    or in pixels with `pixels`. `into` becomes (m, C, height, width), nearest neighbour. With `scores`, (n,), (1, n) or
    (1, n, classes) of which the last counts, boxes below `threshold` are left out, then those that overlap a better
    one by more than `overlap` (intersection over union), and the best `most` are kept.
    """

    image: str
    boxes: str
    into: str
    height: _Side
    width: _Side
    scores: str = ""
    threshold: float = 0.5
    overlap: float = 0.5
    most: Annotated[int, Meta(ge=1, le=4096)] = 16
    pixels: bool = False
    kept: str = ""


def crop(how: Crop, tensors: Feed) -> Tensors:
    """The boxes of `how` cut out of its image, and under `kept` which boxes those are (their numbers, int64).

    Raises:
        InputError: a tensor is not of the shape that `Crop` says.
    """
    image, boxes = tensors[how.image], tensors[how.boxes]
    if image.ndim != 4 or len(image) != 1:
        raise InputError(f"Tensor '{how.image}' to be cropped is of shape {image.shape}; expected (1, C, H, W).")
    boxes = boxes.reshape(-1, boxes.shape[-1]) if boxes.ndim and (boxes.ndim < 3 or len(boxes) == 1) else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"Tensor '{how.boxes}' of boxes is of shape {boxes.shape}; expected (n, 4) or (1, n, 4).")
    _, channels, height, width = image.shape
    chosen = np.arange(len(boxes))
    if how.scores:
        scores = tensors[how.scores]
        values = scores[..., -1].ravel() if scores.ndim == 3 else scores.ravel()
        if len(values) != len(boxes):
            raise InputError(f"Tensor '{how.scores}' has {len(values)} scores for {len(boxes)} boxes.")
        chosen = best_boxes(boxes, values, threshold=how.threshold, overlap=how.overlap)
    chosen = chosen[: how.most]
    scale = np.ones(4) if how.pixels else np.array([width, height, width, height], np.float64)
    out = np.empty((len(chosen), channels, how.height, how.width), image.dtype)
    for i, number in enumerate(chosen):
        left, top, right, bottom = np.asarray(boxes[number], np.float64) * scale
        rows = np.clip(np.floor(top + (np.arange(how.height) + 0.5) * (bottom - top) / how.height), 0, height - 1)
        columns = np.clip(np.floor(left + (np.arange(how.width) + 0.5) * (right - left) / how.width), 0, width - 1)
        out[i] = image[0][:, rows.astype(int)[:, None], columns.astype(int)[None]]
    made: Tensors = {how.into: out}
    if how.kept:
        made[how.kept] = chosen.astype(np.int64)
    return made


def best_boxes(boxes: Array, scores: Array, *, threshold: float, overlap: float) -> Array:
    """Numbers of the boxes of at least `threshold`, best first, none overlapping a better one by more than `overlap`.

    `boxes` is (n, 4): left, top, right, bottom; `scores` (n,). Greedy non-maximum suppression.
    """
    order = np.flatnonzero(scores >= threshold)
    order = order[np.argsort(-scores[order], kind="stable")]
    area = np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[rest, :2], boxes[best, :2]), np.minimum(boxes[rest, 2:], boxes[best, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        whole = area[rest] + area[best] - common
        order = rest[common <= overlap * np.where(whole > 0, whole, 1)]
    return np.array(kept, np.int64)
