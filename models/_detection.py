"""What detectors of the zoo share: overlaps of boxes and masks, and the mean average precision they are judged by.

Boxes are left, top, right, bottom in pixels. Functions of numpy judge, those of PyTorch train.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Judged(NamedTuple):
    """One image: what was detected, what is there, and how much each of the one overlaps each of the other.

    Attributes:
        scores: float (d,).
        classes: int (d,).
        truth: int (t,): classes of the objects that are there.
        overlaps: float (d, t): intersection over union.
    """

    scores: np.ndarray
    classes: np.ndarray
    truth: np.ndarray
    overlaps: np.ndarray


def mean_average_precision(images: Iterable[Judged], threshold: float = 0.5) -> float:
    """mAP as PASCAL VOC defines it since 2010: the area under each class's precision-recall curve, made monotone.

    Detections of a class are gone through by falling score over all images; one is right if the object of its class
    that it overlaps most does so by at least `threshold` and was not found before. Classes without an object do not
    count.
    """
    judged = list(images)
    present = sorted({int(c) for image in judged for c in image.truth})
    return float(np.mean([_average_precision(judged, c, threshold) for c in present])) if present else 0.0


def _average_precision(judged: list[Judged], label: int, threshold: float) -> float:
    rows = [(image.scores[i], n, i) for n, image in enumerate(judged) for i in np.flatnonzero(image.classes == label)]
    rows.sort(key=lambda row: -row[0])
    objects = [np.flatnonzero(image.truth == label) for image in judged]
    found = [np.zeros(len(these), bool) for these in objects]
    right = np.zeros(len(rows), bool)
    for rank, (_, n, i) in enumerate(rows):
        if len(objects[n]):
            overlaps = judged[n].overlaps[i, objects[n]]
            best = int(overlaps.argmax())
            right[rank] = overlaps[best] >= threshold and not found[n][best]
            found[n][best] |= right[rank]
    hits = right.cumsum()
    recall = np.concatenate([[0.0], hits / sum(map(len, objects))])
    precision = np.maximum.accumulate((hits / np.arange(1, len(rows) + 1))[::-1])[::-1]
    return float((np.diff(recall) * precision).sum())


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each of (n, 4) boxes with each of (m, 4) others: (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others)]
    return np.asarray(both / np.maximum(areas[0][:, None] + areas[1] - both, 1e-9))


def mask_overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each of (n, h, w) bool masks with each of (m, h, w) others: (n, m)."""
    a, b = (m.reshape(len(m), -1).astype(np.float32) for m in (masks, others))
    both = a @ b.T
    return np.asarray(both / np.maximum(a.sum(axis=1)[:, None] + b.sum(axis=1) - both, 1e-9))


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., n, 4) and (..., m, 4) to intersection over union (..., n, m)."""
    return _iou(boxes[..., :, None, :], others[..., None, :, :])[0]


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized intersection over union of pairs (Rezatofighi et al., 2019): (..., 4) and (..., 4) to (...)."""
    iou, union = _iou(boxes, others)
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    around = (high - low).prod(dim=-1)
    return iou - (around - union) / around.clamp(min=1e-9)


def _iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    both = (high - low).clamp(min=0).prod(dim=-1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) + (others[..., 2:] - others[..., :2]).prod(dim=-1) - both
    return both / union.clamp(min=1e-9), union


def kept_boxes(boxes: Tensor, scores: Tensor, top_k: int, most: int, threshold: float) -> Tensor:
    """The `most` boxes (batch, most, 4) of the best `top_k` that non-maximum suppression leaves; zeros if there are
    fewer. All images at once: what a standing better box overlaps falls, again and again until nothing changes."""
    best = scores.topk(top_k, dim=1).indices
    ranked = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    over = (pairwise_iou(ranked, ranked) > threshold).float().triu(diagonal=1)
    standing = torch.ones_like(ranked[..., 0])
    for _ in range(top_k):
        before, standing = standing, ((standing[:, None] @ over)[:, 0] == 0).float()
        if torch.equal(before, standing):
            break
    rank = standing * torch.arange(top_k, 0, -1, device=boxes.device)
    first, place = rank.topk(most, dim=1)
    return ranked.gather(1, place[..., None].expand(-1, -1, 4)) * (first > 0)[..., None]
