"""LeNet-5 as of 1998 (tanh, average pooling), on MNIST.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition". It is trained on MNIST and on scikit-learn's
digits together, and judged on MNIST; where MNIST is absent, on scikit-learn's alone.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from _data import DIGITS, MNIST, Split, digits, mnist, public
from _train import accuracy, classification, finish, fit, random_affine, top1
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights


class LeNet5(nn.Module):
    """(batch, 1, 32, 32), -1 background and 1 ink, to ten logits."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(width, 16 * width // 6, 5), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(16 * width // 6, 20 * width, 5), nn.Tanh(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(20 * width, 14 * width), nn.Tanh(), nn.Linear(14 * width, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


def data() -> Split:
    """Both sets to train on; the test part is MNIST's where it is present."""
    small, large = digits(), mnist()
    if large is None:
        return small
    return large._replace(
        train=np.concatenate([large.train, small.train]),
        train_labels=np.concatenate([large.train_labels, small.train_labels]),
    )


def build() -> nn.Module:
    return load_weights(LeNet5(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    images = data().train
    return {"image": images[np.random.default_rng(seed).permutation(len(images))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = data()
    return {"top1": top1(run, split.test, split.test_labels, n)}


SPEC = ModelSpec(
    name="lenet5",
    description="LeNet-5 on MNIST",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": DIGITS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.5, "fp16": 0.2},
)

ZOO = Zoo(group="classic CNNs", title="LeNet-5", data="MNIST" if public(MNIST) else "scikit-learn's digits")


def train() -> nn.Module:
    split = data()
    return fit(
        LeNet5,
        classification(),
        (split.train[500:], split.train_labels[500:]),
        epochs=20,
        augment=lambda images, labels: (random_affine(images, scale=0.1, shift=0.1), labels),
        validate=accuracy(split.train[:500], split.train_labels[:500]),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
