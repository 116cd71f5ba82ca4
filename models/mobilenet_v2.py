"""MobileNetV2, a quarter as wide, trained to read pictures of coloured digits.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from _scenes import photo_digits
from _train import accuracy, classification, finish, fit, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

PREPROCESS = ImagePreprocess(height=64, width=64, mean=(0.5,), std=(0.25,))
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""


def unit(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU6."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Widen by `expand`, filter each channel by itself, narrow without an activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels_in * expand
        self.residual = stride == 1 and channels_in == channels
        self.body = nn.Sequential(
            *(unit(channels_in, wide, 1) if expand > 1 else []),
            *unit(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """(batch, 3, height, width) to `classes` logits; `width` is a factor on all channels."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels_in = round(32 * width)
        layers = unit(3, channels_in, 3, 2)
        for expand, channels, count, stride in STAGES:
            for i in range(count):
                layers.append(InvertedResidual(channels_in, round(channels * width), stride if i == 0 else 1, expand))
                channels_in = round(channels * width)
        last = round(1280 * width)
        self.features = nn.Sequential(*layers, *unit(channels_in, last, 1))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


def make() -> nn.Module:
    return MobileNetV2(width=0.25, classes=10)


def build() -> nn.Module:
    return load_weights(make(), weights_file(__file__))


def pictures(n: int, seed: int, *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    return photo_digits(n, seed, PREPROCESS, test=test, background="plain")


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": pictures(n, seed)[0]}


def evaluate(run, n: int) -> dict[str, float]:
    images, labels = pictures(1000, 0, test=True)
    return {"top1": top1(run, images, labels, n)}


SPEC = ModelSpec(
    name="mobilenet_v2",
    description="MobileNetV2, width 0.25, on coloured digits",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 64, 64)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(group="classic CNNs", title="MobileNetV2, width 0.25", data="coloured digits")


def train() -> nn.Module:
    return fit(make, classification(), pictures(6000, 2), epochs=12, max_lr=0.01, validate=accuracy(*pictures(500, 1)))


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
