"""Transfer learning: VGG-16's features, learned on MNIST, stay as they are; a new head learns scikit-learn's digits.

Those are of other writers and from another scanner, eight pixels high; the head sees twenty of each digit. The net is
narrow (`width` 8), with BatchNorm. The test needs no MNIST, training does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _data import digits, mnist
from _train import accuracy, classification, finish, fit, random_affine, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights
from vgg16 import VGG16

PREPROCESS = ImagePreprocess(height=32, width=32, mean=(0.5,), std=(0.5,))
EXAMPLES, VIEWS = 20, 10
"""Pictures of each digit that the head learns from, and how often each is turned, scaled and shifted."""


def make() -> VGG16:
    return VGG16(width=8, size=32, classes=10, hidden=32, norm=True, dropout=0.2)


def build() -> nn.Module:
    return load_weights(make(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    images = digits(PREPROCESS).train
    return {"image": images[np.random.default_rng(seed).permutation(len(images))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = digits(PREPROCESS)
    return {"top1": top1(run, split.test, split.test_labels, n)}


SPEC = ModelSpec(
    name="vgg16_transfer",
    description="VGG-16, width 8: features of MNIST, a head for scikit-learn's digits",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 32, 32)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(
    group="classic CNNs",
    title="VGG-16, width 8, new head on frozen features",
    data="MNIST, then 200 of scikit-learn's digits",
)


def moved(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return random_affine(images, turn=0.2, scale=0.25), labels


def coarse(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Moved, and as a coarser scanner would see them: 8 to 32 pixels high."""
    side = int(torch.randint(8, 33, ()))
    small = F.interpolate(moved(images, labels)[0], (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[2:], mode="bilinear"), labels


def train() -> nn.Module:
    """The features on MNIST, then the head alone on a few of the others."""
    source = mnist(PREPROCESS)
    if source is None:
        raise SystemExit("training needs MNIST: EDGEKIT_DATA names the folder that holds it")
    check = accuracy(source.test, source.test_labels)
    learnt = (source.train, source.train_labels)
    net = fit(make, classification(), learnt, epochs=8, max_lr=0.005, augment=coarse, validate=check)
    net.features.requires_grad_(False)
    net.head = make().head
    split = digits(PREPROCESS)
    few = np.concatenate([np.flatnonzero(split.train_labels == c)[:EXAMPLES] for c in range(10)])
    images, labels = torch.from_numpy(split.train[few]), torch.from_numpy(split.train_labels[few])
    with torch.inference_mode():
        views = [net.features(moved(images, labels)[0]) for _ in range(VIEWS)]
    seen = (torch.cat(views).clone(), labels.repeat(VIEWS))
    net.head = fit(net.head, classification(), seen, epochs=40, batch=50, max_lr=0.005)
    return net.eval()


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
