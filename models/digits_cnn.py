"""A small residual CNN that reads handwritten digits.

The data are scikit-learn's 1,797 real digits, which come with the library. 600 of them are the test split, which
training never sees. `python models/digits_cnn.py` trains again and writes `digits_cnn.safetensors` beside this file.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from _data import digits
from _train import classification, finish, fit, random_affine, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

PREPROCESS = ImagePreprocess(height=32, width=32, color="L", mean=(0.5,), std=(0.5,))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; `stride` 2 halves the image."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitsCNN(nn.Module):
    """(batch, 1, 32, 32) in [-1, 1] to ten logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width, 2), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(image))
        return self.head(features.mean(dim=(2, 3)))


def build() -> nn.Module:
    return load_weights(DigitsCNN(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Real images of the training split: calibrating on test images would flatter the result."""
    train = digits(PREPROCESS).train
    return {"image": train[np.random.default_rng(seed).permutation(len(train))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    """Top-1 on the test split."""
    split = digits(PREPROCESS)
    return {"top1": top1(run, split.test, split.test_labels, n)}


SPEC = ModelSpec(
    name="digits_cnn",
    description="Residual CNN on scikit-learn's handwritten digits",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.3, "fp16": 0.2},
)

ZOO = Zoo(group="classic CNNs", title="Residual CNN (the demo)", data="scikit-learn's digits")


def train(epochs: int = 20) -> nn.Module:
    """Seeded training with random shifts, turns and scales."""
    split = digits(PREPROCESS)
    return fit(
        DigitsCNN,
        classification(),
        (split.train, split.train_labels),
        epochs=epochs,
        augment=lambda images, labels: (random_affine(images), labels),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
