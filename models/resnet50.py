"""ResNet-50 at its full size, with bottleneck blocks (stride in the 3x3 convolution).

The weights are random: this recipe is for shape, speed and compile checks. `resnet18.py` trains a small one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from _full_size import full_size
from resnet18 import ResNet, shortcut


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, a quarter as wide inside, and a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = channels // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet50(ResNet):
    """(batch, 3, height, width) to `classes` logits."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3), width, classes)


SPEC, ZOO = full_size("resnet50", "ResNet-50", ResNet50)
