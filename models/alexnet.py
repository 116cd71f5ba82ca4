"""AlexNet, the net that won ImageNet in 2012, at its full size: five convolutions and three large dense layers.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014: the form for one device. The
weights are random: this recipe is for shape, speed and compile checks.
"""

from __future__ import annotations

from torch import Tensor, nn

from _full_size import full_size


class AlexNet(nn.Module):
    """(batch, 3, 224, 224) to `classes` logits; `width` 64 is the full size."""

    def __init__(self, width: int = 64, classes: int = 1000, hidden: int = 4096) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            nn.Conv2d(3, w, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(w, 3 * w, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(3 * w, 6 * w, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6 * w, 4 * w, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4 * w, 4 * w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * w * 6 * 6, hidden), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


SPEC, ZOO = full_size("alexnet", "AlexNet", AlexNet)
