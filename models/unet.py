"""A U-Net (Ronneberger et al., 2015) that says of each pixel which digit it belongs to, if any."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _scenes import digit_scenes
from _train import DEVICE, finish, fit
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

SIZE = 32
PREPROCESS = ImagePreprocess(height=SIZE, width=SIZE, color="L", mean=(0.5,), std=(0.25,))
CLASSES = ("background", *(str(d) for d in range(10)))


def block(channels_in: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    layers: list[nn.Module] = []
    for c in (channels_in, channels):
        layers += [nn.Conv2d(c, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(batch, 1, height, width), sides divisible by 2**depth, to scores (batch, 11, height, width) of each pixel."""

    def __init__(self, width: int = 8, depth: int = 3, classes: int = len(CLASSES)) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.stem = block(1, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), block(a, b)) for a, b in pairwise(widths))
        pairs = list(zip(widths[::-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2) for wide, narrow in pairs)
        self.join = nn.ModuleList(block(2 * narrow, narrow) for _, narrow in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


@cache
def scenes(n: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (n, 1, 32, 32), and the class of each pixel int64 (n, 32, 32), 0 for background."""
    made = digit_scenes(n, seed, SIZE, test=test, objects=(1, 2), sides=(0.5, 0.8))
    images = np.concatenate([PREPROCESS.from_pixels(image[..., None]) for image in made.images])
    return images, np.einsum("nm,nmhw->nhw", made.classes + 1, made.masks)


def mean_iou(scores: list[np.ndarray], truth: np.ndarray) -> float:
    """Intersection over union of each digit, over all images, and the mean of the ten."""
    found = np.concatenate([s.argmax(axis=1) for s in scores])
    both = np.bincount((truth * len(CLASSES) + found).ravel(), minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)
    union = both.sum(axis=0) + both.sum(axis=1) - both.diagonal()
    return float((both.diagonal() / np.maximum(union, 1))[1:].mean())


def build() -> nn.Module:
    return load_weights(UNet(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": scenes(n, seed)[0]}


def evaluate(run, n: int) -> dict[str, float]:
    images, truth = scenes(400, 0, test=True)
    return {"miou": mean_iou([run({"image": x})["scores"] for x in np.array_split(images[:n], 8)], truth[:n])}


SPEC = ModelSpec(
    name="unet",
    description="U-Net, semantic segmentation of scenes of digits",
    license="Apache-2.0",
    task="segmentation",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, SIZE, SIZE)),),
    outputs=("scores",),
    labels=CLASSES,
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(group="vision tasks", title="U-Net, semantic segmentation", data="scenes of scikit-learn's digits")


def loss(net: nn.Module, image: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy, and how little the probabilities overlap the classes that are there (soft Dice loss)."""
    scores = net(image)
    chance, wanted = scores.softmax(dim=1), F.one_hot(truth, len(CLASSES)).movedim(-1, 1)
    size = wanted.sum(dim=(2, 3))
    dice = 2 * (chance * wanted).sum(dim=(2, 3)) / (chance.sum(dim=(2, 3)) + size)
    return F.cross_entropy(scores, truth) + 1 - dice[size > 0].mean()


def train() -> nn.Module:
    images, truth = scenes(200, 1)

    def score(net: nn.Module) -> float:
        with torch.inference_mode():
            parts = torch.from_numpy(images).split(50)
            return mean_iou([net(x.to(DEVICE)).cpu().numpy() for x in parts], truth)

    return fit(UNet, loss, scenes(2500, 2), epochs=26, batch=32, max_lr=0.015, validate=score)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
