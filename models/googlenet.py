"""GoogLeNet (Inception v1) at its full size: nine modules of four parallel branches, with BatchNorm.

Szegedy et al., "Going Deeper with Convolutions", 2014; BatchNorm in place of its response normalisation, no auxiliary
classifiers. The weights are random: this recipe is for shape, speed and compile checks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from _full_size import full_size

MODULES = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None,
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), None,
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip
"""Table 1 of the paper: channels of 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection. None halves the image."""


def unit(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class Inception(nn.Module):
    """Four branches side by side, joined along the channels."""

    def __init__(self, channels_in: int, a: int, b_in: int, b: int, c_in: int, c: int, d: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            unit(channels_in, a, 1),
            nn.Sequential(unit(channels_in, b_in, 1), unit(b_in, b, 3)),
            nn.Sequential(unit(channels_in, c_in, 1), unit(c_in, c, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(channels_in, d, 1)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class GoogLeNet(nn.Module):
    """(batch, 3, 224, 224) to `classes` logits; `width` is a factor on all channels."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        wide = [round(c * width) for c in (64, 192)]
        layers: list[nn.Module] = [
            unit(3, wide[0], 7, 2), nn.MaxPool2d(3, 2, 1), unit(wide[0], wide[0], 1), unit(wide[0], wide[1], 3),
            nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        channels = wide[1]
        for module in MODULES:
            if module is None:
                layers.append(nn.MaxPool2d(3, 2, 1))
                continue
            sizes = [max(1, round(c * width)) for c in module]
            layers.append(Inception(channels, *sizes))
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(channels, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


SPEC, ZOO = full_size("googlenet", "GoogLeNet", GoogLeNet)
