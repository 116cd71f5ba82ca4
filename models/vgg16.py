"""VGG-16 at its full size: thirteen 3x3 convolutions, three large dense layers, 138 million weights.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014. The weights are
random: this recipe is for shape, speed and compile checks. `vgg16_transfer.py` trains a small one.
"""

from __future__ import annotations

from torch import Tensor, nn

from _full_size import full_size


class VGG16(nn.Module):
    """(batch, 3, size, size) to `classes` logits; `width` 64, `size` 224, `hidden` 4096 is the full net."""

    def __init__(
        self,
        width: int = 64,
        size: int = 224,
        classes: int = 1000,
        hidden: int = 4096,
        norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(count):
                layers.append(nn.Conv2d(channels_in, channels * width, 3, padding=1, bias=not norm))
                layers += [nn.BatchNorm2d(channels * width)] if norm else []
                layers.append(nn.ReLU())
                channels_in = channels * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * width * (size // 32) ** 2, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


SPEC, ZOO = full_size("vgg16", "VGG-16", VGG16)
