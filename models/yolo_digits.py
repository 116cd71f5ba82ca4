"""A YOLO-style detector: digits on photographs, from pixels to boxes after non-maximum suppression in one graph.

It is built as YOLO version 8 is: blocks that split and concatenate (C2f), a neck that goes up and down again, a head
without anchors on two strides, and an assigner that gives each object the cells that do best on it. The graph ends in
`plugins_trt.torch.decode_nms_head`: always MOST detections, and how many of them count. FRAMES begins with a camera's
frames.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import plugins_trt.torch as ops
from _detection import Judged, box_overlaps, giou, mean_average_precision, pairwise_iou
from _scenes import Scenes, digit_scenes
from _train import finish, fit
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights, with_preprocess

SIZE, MOST, CLASSES = 96, 10, 10
STRIDES = (8, 16)
PREPROCESS = ImagePreprocess(height=SIZE, width=SIZE, color="L", resize="letterbox", mean=(0.5,), std=(0.5,))


def conv(channels_in: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and ReLU, which INT8 kernels take along (as in YOLO version 6; version 8 has SiLU)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


class C2f(nn.Module):
    """Half of the channels goes through `depth` residual blocks; all that comes up on the way is put together."""

    def __init__(self, channels_in: int, channels: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = channels // 2
        self.first = conv(channels_in, 2 * half, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv(half, half), conv(half, half)) for _ in range(depth))
        self.last = conv((2 + depth) * half, channels, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, dim=1))
        for block in self.blocks:
            made = block(parts[-1])
            parts.append(parts[-1] + made if self.shortcut else made)
        last: Tensor = self.last(torch.cat(parts, dim=1))
        return last


class Yolo(nn.Module):
    """(batch, 1, 96, 96) to (batch, 4 + 10, 180): centre x, centre y, width, height in pixels, and logits, a cell."""

    def __init__(self, width: int = 10, depth: int = 1) -> None:
        super().__init__()
        w = width
        self.fine = nn.Sequential(
            conv(1, w, stride=2), conv(w, 2 * w, stride=2), C2f(2 * w, 2 * w, depth),
            conv(2 * w, 4 * w, stride=2), C2f(4 * w, 4 * w, depth),
        )  # fmt: skip
        self.coarse = nn.Sequential(conv(4 * w, 6 * w, stride=2), C2f(6 * w, 6 * w, depth))
        self.up = C2f(10 * w, 4 * w, depth, shortcut=False)
        self.down = conv(4 * w, 4 * w, stride=2)
        self.again = C2f(10 * w, 6 * w, depth, shortcut=False)
        self.boxes = nn.ModuleList(self._head(channels, 4) for channels in (4 * w, 6 * w))
        self.classes = nn.ModuleList(self._head(channels, CLASSES) for channels in (4 * w, 6 * w))
        for head in self.classes:
            nn.init.constant_(head[-1].bias, -4.0)  # nearly all cells are background: begin there
        cells = [torch.arange(SIZE // s) * s + s / 2 for s in STRIDES]
        points = [torch.stack(torch.meshgrid(c, c, indexing="xy"), dim=-1).reshape(-1, 2).T for c in cells]
        self.register_buffer("points", torch.cat(points, dim=1), persistent=False)

    def _head(self, channels: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(channels, channels), nn.Conv2d(channels, outputs, 1))

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        coarse = self.coarse(fine)
        fine = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], dim=1))
        coarse = self.again(torch.cat([self.down(fine), coarse], dim=1))
        maps = (fine, coarse)
        sides = torch.cat([F.softplus(h(m)).flatten(2) * s for h, m, s in zip(self.boxes, maps, STRIDES)], dim=2)
        logits = torch.cat([h(m).flatten(2) for h, m in zip(self.classes, maps)], dim=2)
        before, after = sides.chunk(2, dim=1)
        return torch.cat([self.points + (after - before) / 2, before + after, logits], dim=1)


class Detector(nn.Module):
    """The net and its decoding: count, boxes (left, top, right, bottom), scores and classes of `MOST` detections."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ops.decode_nms_head(
            self.net(image), sigmoid=1, score_threshold=0.05, iou_threshold=0.5, top_k=64, max_detections=MOST
        )
        return found


def build() -> nn.Module:
    return Detector(load_weights(Yolo(), weights_file(__file__)))


@cache
def scenes(n: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, Scenes]:
    """Scenes as the net takes them, and with their labels."""
    made = digit_scenes(n, seed, SIZE, test=test)
    return np.concatenate([PREPROCESS.from_pixels(image[..., None]) for image in made.images]), made


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": scenes(n, 1000 + seed)[0]}


def evaluate(run, n: int) -> dict[str, float]:
    """Mean average precision at an overlap of 0.5, on scenes of digits and places that training never saw."""
    images, truth = scenes(min(n, 250), 0, test=True)
    judged = []
    for i in range(0, len(images), 50):
        found = run({"image": images[i : i + 50]})
        for j, k in enumerate(found["count"]):
            there = truth.classes[i + j] >= 0
            overlaps = box_overlaps(found["boxes"][j, :k], truth.boxes[i + j][there])
            detected = found["scores"][j, :k], found["classes"][j, :k]
            judged.append(Judged(*detected, truth.classes[i + j][there], overlaps))
    return {"mAP50": mean_average_precision(judged)}


SPEC = ModelSpec(
    name="yolo_digits",
    description="YOLO-style detector of handwritten digits on photographs, with its suppression in the graph",
    license="Apache-2.0",
    task="detection",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, SIZE, SIZE)),),
    outputs=("count", "boxes", "scores", "classes"),
    labels=tuple(str(d) for d in range(CLASSES)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.3},
)

FRAMES = replace(
    with_preprocess(SPEC, height=2 * SIZE, width=2 * SIZE, color="BGR"),
    name="yolo_digits_frames",
    description="YOLO-style detector that takes a camera's frames, uint8 BGR, and shrinks and normalises them itself",
)

ZOO = Zoo(
    group="vision tasks",
    title="YOLO-style detector",
    data="scenes of scikit-learn's digits on photographs",
    specs=("SPEC", "FRAMES"),
)


def loss(net: nn.Module, images: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Task-aligned assignment (Feng et al., "TOOD", 2021), then cross-entropy of all cells and GIoU of the objects'."""
    head = net(images).transpose(1, 2)
    centre, size, logits = head[..., :2], head[..., 2:4], head[..., 4:]
    predicted = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    there = classes >= 0
    label = classes.clamp(min=0)
    with torch.no_grad():
        x, y = net.points
        left, top, right, bottom = boxes[..., None].unbind(dim=2)  # (batch, objects, 1) beside (cells,)
        inside = (x > left) & (x < right) & (y > top) & (y < bottom) & there[..., None]
        iou = pairwise_iou(boxes, predicted)
        score = logits.sigmoid().transpose(1, 2).gather(1, label[..., None].expand_as(iou))
        aligned = score.sqrt() * iou**4 * inside
        chosen = inside & (aligned >= aligned.topk(6, dim=2).values[..., -1:])
        owner = (iou * chosen).argmax(dim=1, keepdim=True)  # of several objects the one it overlaps most
        chosen &= torch.zeros_like(chosen).scatter_(1, owner, True)
        aligned = aligned * chosen
        most = aligned.amax(dim=2, keepdim=True).clamp(min=1e-9)
        weight = aligned / most * (iou * chosen).amax(dim=2, keepdim=True)  # (batch, objects, cells)
        target = torch.einsum("bmc,bmk->bck", weight, F.one_hot(label, CLASSES).float())
        total = weight.sum().clamp(min=1.0)
    fit_of = 1 - giou(predicted[:, None], boxes[:, :, None])
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return (entropy + 4 * (fit_of * weight).sum()) / total


def relit(images: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
    """Each image brighter or darker, and with noise."""
    gain = torch.empty(len(images), 1, 1, 1).uniform_(0.8, 1.1).to(images.device)
    return (images + 1) * gain - 1 + 0.05 * torch.randn_like(images), *labels


def train(epochs: int = 12) -> nn.Module:
    images, truth = scenes(2600, 1)
    data = (images, truth.boxes, truth.classes)
    return fit(Yolo, loss, data, epochs=epochs, batch=32, max_lr=0.006, augment=relit)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
