"""Transfer learning: VGG-16's features, learned on the digits 0 to 5, stay as they are; a new head learns 6 to 9.

The head sees a hundred examples of each new digit; what it knows of strokes and colours it has from the old ones. The
net is narrow (`width` 8), with BatchNorm, and takes small pictures of coloured digits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from _scenes import photo_digits
from _train import accuracy, classification, finish, fit, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights
from vgg16 import VGG16

PREPROCESS = ImagePreprocess(height=32, width=32, mean=(0.5,), std=(0.25,))
OLD, NEW = (0, 1, 2, 3, 4, 5), (6, 7, 8, 9)
EXAMPLES = 100


def make(classes: int = len(NEW), dropout: float = 0.0) -> VGG16:
    return VGG16(width=8, size=32, classes=classes, hidden=32, norm=True, dropout=dropout)


def build() -> nn.Module:
    return load_weights(make(), weights_file(__file__))


def pictures(n: int, seed: int, digits: tuple[int, ...], *, test: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of `digits` among `n` scenes, and which of `digits` each shows."""
    images, labels = photo_digits(n, seed, PREPROCESS, test=test, background="plain")
    chosen = np.isin(labels, digits)
    return images[chosen], np.searchsorted(digits, labels[chosen])


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"image": pictures(4 * n, seed, NEW)[0][:n]}


def evaluate(run, n: int) -> dict[str, float]:
    images, labels = pictures(1500, 0, NEW, test=True)
    return {"top1": top1(run, images, labels, n)}


SPEC = ModelSpec(
    name="vgg16_transfer",
    description="VGG-16, width 8: features of the digits 0 to 5, a head for 6 to 9",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 32, 32)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in NEW),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(group="classic CNNs", title="VGG-16, width 8, new head on frozen features", data="coloured digits")


def train() -> nn.Module:
    """The features on the old digits, then the head alone on a few of the new ones."""
    check = accuracy(*pictures(800, 1, OLD))
    old = pictures(8000, 2, OLD)
    source = fit(lambda: make(len(OLD), dropout=0.5), classification(), old, epochs=12, max_lr=0.005, validate=check)
    net = make()
    net.features = source.features.requires_grad_(False)
    images, labels = pictures(3000, 3, NEW)
    few = np.concatenate([np.flatnonzero(labels == c)[:EXAMPLES] for c in range(len(NEW))])
    with torch.inference_mode():
        features = net.features(torch.from_numpy(images[few])).clone()
    net.head = fit(net.head, classification(), (features, labels[few]), epochs=100, batch=20, max_lr=0.01)
    return net.eval()


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
