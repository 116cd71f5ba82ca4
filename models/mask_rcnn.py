"""Mask R-CNN: digits on photographs, each with its box and the pixels that are its own, in one graph of fixed size.

He et al., "Mask R-CNN", 2017, small: a residual backbone with a feature pyramid, region proposals from anchors,
RoIAlign on the pyramid, a head for boxes and classes, and one for masks. What has no fixed size elsewhere are operators
of `plugins_trt`: always PROPOSALS regions, and always MOST detections, of which the first `count` are any.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import plugins_trt.torch as ops
from _detection import Judged, box_overlaps, kept_boxes, mask_overlaps, mean_average_precision, pairwise_iou
from _train import finish, fit
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights
from yolo_digits import CLASSES, PREPROCESS, SIZE, relit, samples, scenes

PROPOSALS, MOST = 16, 8
BINS, MASK = 7, 28
ANCHORS = ((13, 22), (20, 30), (30, 42))
"""Width and height, pixels, at each cell of the coarse map."""
SPREAD = (0.1, 0.2)
"""Offsets of centres and of logarithms of sizes are in these units (SSD's variances)."""
PYRAMID = {"spatial_scales": [1 / 4, 1 / 8], "first_level": 2, "canonical_level": 3, "canonical_scale": 28.0}
"""Regions from 28 pixels on are read from the coarse map, smaller ones from the fine one."""


class Residual(nn.Module):
    """Two convolutions and a shortcut; the first halves the map."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x) + self.shortcut(x))


class MaskRCNN(nn.Module):
    """(batch, 1, 96, 96) to count, boxes, scores, classes and masks (batch, MOST, 28, 28) of the detections."""

    def __init__(self, width: int = 12, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = (width, 2 * width, 4 * width, 6 * width)
        self.stages = nn.ModuleList(Residual(a, b) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))
        self.rpn = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, 1, 1), nn.ReLU())
        self.rpn_out = nn.Conv2d(2 * channels, len(ANCHORS) * 5, 1)
        self.box = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * BINS**2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.box_out = nn.Linear(64, CLASSES + 1 + 4)
        self.mask = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 2, 2), nn.ReLU(),
            nn.Conv2d(channels, CLASSES, 1),
        )  # fmt: skip
        at = torch.arange(4, SIZE, 8).float()
        y, x = torch.meshgrid(at, at, indexing="ij")
        every = [torch.stack([x, y, torch.full_like(x, w), torch.full_like(x, h)], dim=-1) for w, h in ANCHORS]
        self.register_buffer("anchors", torch.stack(every, dim=2).reshape(-1, 4), persistent=False)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fine and the coarse map, offsets from the anchors (batch, anchors, 4) and logits (batch, anchors, 1)."""
        x, maps = self.stem(image), []
        for stage, lateral in zip(self.stages, self.lateral):
            x = stage(x)
            maps.append(lateral(x))
        coarse = maps[1] + F.interpolate(maps[2], scale_factor=2.0)
        fine = self.smooth[0](maps[0] + F.interpolate(coarse, scale_factor=2.0))
        coarse = self.smooth[1](coarse)
        proposed = self.rpn_out(self.rpn(coarse)).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 5))
        return fine, coarse, proposed[..., :4], proposed[..., 4:]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fine, coarse, offsets, logits = self.features(image)
        _, regions, objectness, _ = ops.decode_nms_anchors(
            offsets, logits, self.anchors, center_variance=SPREAD[0], size_variance=SPREAD[1],
            sigmoid=1, score_threshold=0.0, iou_threshold=0.6, top_k=64, max_detections=PROPOSALS,
        )  # fmt: skip
        of_image = torch.arange(image.shape[0], device=image.device)[:, None]

        def aligned(boxes: Tensor, bins: int) -> Tensor:
            which = of_image.expand(-1, boxes.shape[1]).reshape(-1)
            size = {"output_height": bins, "output_width": bins}
            out: Tensor = ops.roi_align_fpn2(fine, coarse, boxes.reshape(-1, 4), which, **size, **PYRAMID)
            return out

        judged = self.box_out(self.box(aligned(regions, BINS))).unflatten(0, (-1, PROPOSALS))
        scores = judged[..., 4:].softmax(dim=-1) * (objectness > 0)[..., None]
        boxes = decoded(judged[..., :4], regions).clamp(0, SIZE)
        count, boxes, scores, classes = ops.decode_nms(
            boxes, scores, background=1, score_threshold=0.05, iou_threshold=0.5, top_k=PROPOSALS, max_detections=MOST
        )
        drawn = self.mask(aligned(boxes, MASK // 2)).unflatten(0, (-1, MOST))
        own = (classes - 1).clamp(min=0).to(torch.int64)[..., None, None, None].expand(-1, -1, 1, MASK, MASK)
        masks = drawn.gather(2, own)[:, :, 0].sigmoid() * (classes > 0)[..., None, None]
        return count, boxes, scores, classes - (classes > 0).to(torch.int32), masks


def decoded(offsets: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (..., 4) moved by `offsets`, as `decode_nms_anchors` moves anchors."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + offsets[..., :2] * SPREAD[0] * size
    half = size * (offsets[..., 2:] * SPREAD[1]).clamp(max=2.0).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encoded(targets: Tensor, boxes: Tensor) -> Tensor:
    """The offsets that move `boxes` to `targets`."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1.0)
    wanted = (targets[..., 2:] - targets[..., :2]).clamp(min=1.0)
    moved = (targets[..., :2] + wanted / 2 - boxes[..., :2] - size / 2) / size
    return torch.cat([moved / SPREAD[0], (wanted / size).log() / SPREAD[1]], dim=-1)


def build() -> nn.Module:
    return load_weights(MaskRCNN(), weights_file(__file__))


def pasted(box: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A detection's mask (28, 28) as the pixels (96, 96) of the image that it covers."""
    left, top = box[:2]
    x, y = mask.shape[1] / max(box[2] - left, 1), mask.shape[0] / max(box[3] - top, 1)
    back = (x, 0, -left * x, 0, y, -top * y)
    whole = Image.fromarray(mask).transform((SIZE, SIZE), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    return np.asarray(whole) > 0.5


def evaluate(run, n: int) -> dict[str, float]:
    """Mean average precision of masks, and of boxes, at an overlap of 0.5, on scenes that training never saw."""
    images, truth = scenes(min(n, 250), 0, test=True)
    of_masks, of_boxes = [], []
    for i in range(0, len(images), 50):
        found = run({"image": images[i : i + 50]})
        for j, k in enumerate(found["count"]):
            there = truth.classes[i + j] >= 0
            detected = found["scores"][j, :k], found["classes"][j, :k], truth.classes[i + j][there]
            boxes = found["boxes"][j, :k]
            masks = [pasted(b, m) for b, m in zip(boxes, found["masks"][j].astype(np.float32))]
            drawn = np.array(masks, bool).reshape(-1, SIZE, SIZE)
            of_masks.append(Judged(*detected, mask_overlaps(drawn, truth.masks[i + j][there])))
            of_boxes.append(Judged(*detected, box_overlaps(boxes, truth.boxes[i + j][there])))
    return {"mask_mAP50": mean_average_precision(of_masks), "box_mAP50": mean_average_precision(of_boxes)}


SPEC = ModelSpec(
    name="mask_rcnn",
    description="Mask R-CNN for handwritten digits on photographs: proposals, RoIAlign, boxes and masks in one graph",
    license="Apache-2.0",
    task="instance segmentation",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, SIZE, SIZE)),),
    outputs=("count", "boxes", "scores", "classes", "masks"),
    labels=tuple(str(d) for d in range(CLASSES)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.3},
)

ZOO = Zoo(group="vision tasks", title="Mask R-CNN", data="scenes of scikit-learn's digits on photographs")


def sampled(maps: tuple[Tensor, Tensor], boxes: Tensor, bins: int) -> Tensor:
    """`roi_align_fpn2` with a gradient: boxes (batch, regions, 4) to (batch * regions, channels, bins, bins).

    Bilinear samples on a grid are two products of matrices, one for rows and one for columns.
    """

    def weights(start: Tensor, end: Tensor, cells: int) -> Tensor:
        at = (torch.arange(2 * bins, device=boxes.device) + 0.5) / (2 * bins)
        at = (start[..., None] + (end - start)[..., None] * at) * (cells / SIZE) - 0.5
        away = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=boxes.device)
        return (1 - away.abs()).clamp(min=0).unflatten(2, (bins, 2)).mean(dim=3)

    left, top, right, bottom = boxes.unbind(dim=-1)
    read = []
    for m in maps:
        rows, columns = weights(top, bottom, m.shape[2]), weights(left, right, m.shape[3])
        read.append(torch.einsum("nrpy,ncyx,nrqx->nrcpq", rows, m, columns))
    large = (right - left) * (bottom - top) >= PYRAMID["canonical_scale"] ** 2
    return torch.where(large[..., None, None, None], read[1], read[0]).flatten(0, 1)


def loss(net: MaskRCNN, images: Tensor, boxes: Tensor, classes: Tensor, masks: Tensor) -> Tensor:
    """Proposals against anchors, then classes, boxes and masks of regions: proposals, and true boxes moved a little."""
    there = classes >= 0
    fine, coarse, offsets, logits = net.features(images)
    half = net.anchors[:, 2:] / 2
    anchors = torch.cat([net.anchors[:, :2] - half, net.anchors[:, :2] + half], dim=1).expand(len(images), -1, -1)
    total = _matched(offsets, anchors, boxes, there)
    overlap = pairwise_iou(anchors, boxes) * there[:, None]
    best = overlap.amax(dim=1, keepdim=True)  # an object's best anchor is its own, however small the overlap
    most = overlap.amax(dim=2)
    right = (most >= 0.5) | ((overlap == best) & (best > 0.2)).any(dim=2)
    weight = (right | (most < 0.35)).float()
    entropy = F.binary_cross_entropy_with_logits(logits[..., 0], right.float(), weight, reduction="sum")
    total = total + entropy / right.sum().clamp(min=1)
    with torch.no_grad():
        proposals = kept_boxes(decoded(offsets, anchors).clamp(0, SIZE), logits[..., 0], 64, PROPOSALS, 0.6)
        size = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
        moved = (boxes + 0.08 * size * torch.randn_like(size)).clamp(0, SIZE)
        regions = torch.cat([moved, proposals], dim=1)
        overlap = pairwise_iou(regions, boxes) * there[:, None]
        most, owner = overlap.max(dim=2)
        label = torch.where(most >= 0.5, classes.gather(1, owner) + 1, 0)
        usable = torch.cat([there, torch.ones_like(most[:, moved.shape[1] :], dtype=torch.bool)], dim=1)
    judged = net.box_out(net.box(sampled((fine, coarse), regions, BINS))).unflatten(0, regions.shape[:2])
    total = total + F.cross_entropy(judged[..., 4:][usable], label[usable], label_smoothing=0.02)
    total = total + _matched(judged[..., :4], regions, boxes, there)
    drawn = net.mask(sampled((fine, coarse), moved, MASK // 2)).unflatten(0, moved.shape[:2])
    shown = label[:, : moved.shape[1]] > 0
    batch, objects = torch.nonzero(shown, as_tuple=True)
    which = owner[:, : moved.shape[1]][batch, objects]
    picture = masks[batch, which].float()[:, None]
    wanted = sampled((picture, picture), moved[batch, objects][:, None], MASK)[:, 0]
    own = drawn[batch, objects, label[batch, objects] - 1]
    return total + 2 * F.binary_cross_entropy_with_logits(own, (wanted > 0.5).float())


def _matched(offsets: Tensor, boxes: Tensor, truth: Tensor, there: Tensor) -> Tensor:
    """Smooth L1 of offsets against those that move each box to the object it overlaps by half or more."""
    overlap, owner = (pairwise_iou(boxes, truth) * there[:, None]).max(dim=2)
    close = overlap >= 0.5
    wanted = encoded(truth.gather(1, owner[..., None].expand(-1, -1, 4)), boxes)
    return F.smooth_l1_loss(offsets[close], wanted[close], reduction="sum") / close.sum().clamp(min=1)


def train(epochs: int = 12) -> nn.Module:
    images, truth = scenes(2200, 1)
    data = (images, truth.boxes, truth.classes, truth.masks)
    return fit(MaskRCNN, loss, data, epochs=epochs, batch=32, max_lr=0.004, augment=relit)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
