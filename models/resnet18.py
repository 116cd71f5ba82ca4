"""ResNet-18, narrow, trained to read one digit over a photograph; `ResNet` is the family, from 18 to 152 layers.

He et al., "Deep Residual Learning for Image Recognition", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from _scenes import photo_digits
from _train import accuracy, classification, finish, fit, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

PREPROCESS = ImagePreprocess(height=64, width=64, mean=(0.5,), std=(0.25,))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    """Past a block: as it is, or a 1x1 convolution where the shape changes."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ResNet(nn.Module):
    """(batch, 3, height, width) to `classes` logits; `depth` counts the blocks of each of four stages."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module] = BasicBlock,
        depth: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels_in = width
        for stage, count in enumerate(depth):
            channels = width * 2**stage * block.expansion  # type: ignore[attr-defined]
            for i in range(count):
                layers.append(block(channels_in, channels, 2 if stage and i == 0 else 1))
                channels_in = channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


def make() -> nn.Module:
    return ResNet(width=8, classes=10)


def build() -> nn.Module:
    return load_weights(make(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": photo_digits(n, seed, PREPROCESS)[0]}


def evaluate(run, n: int) -> dict[str, float]:
    images, labels = photo_digits(600, 0, PREPROCESS, test=True)
    return {"top1": top1(run, images, labels, n)}


SPEC = ModelSpec(
    name="resnet18",
    description="ResNet-18, width 8, on digits over photographs",
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

ZOO = Zoo(group="classic CNNs", title="ResNet-18, width 8", data="digits over photographs")


def train() -> nn.Module:
    check = accuracy(*photo_digits(500, 1, PREPROCESS))
    return fit(make, classification(), photo_digits(6000, 2, PREPROCESS), epochs=10, max_lr=0.01, validate=check)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
