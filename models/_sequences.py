"""What the recurrent classifiers share: a handwritten digit read row by row, as a sequence of any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from _data import digits
from _train import accuracy, classification, fit, random_affine, top1
from edgekit import ImagePreprocess, ModelSpec, TensorSpec

ROWS = ImagePreprocess(height=16, width=16, color="L", mean=(0.5,), std=(0.5,))
HELD_OUT = 150


def rows(image: Tensor) -> Tensor:
    """(batch, 1, rows, 16) as a sequence (batch, rows, 16)."""
    return image.squeeze(1)


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    images = digits(ROWS).train
    return {"image": images[np.random.default_rng(seed).permutation(len(images))[:n]]}


def evaluate(run: Any, n: int) -> dict[str, float]:
    split = digits(ROWS)
    return {"top1": top1(run, split.test, split.test_labels, n)}


def spec(name: str, description: str, build: Callable[[], nn.Module]) -> ModelSpec:
    """The SPEC of a classifier of digits by their rows; batch and number of rows are free."""
    return ModelSpec(
        name=name,
        description=description,
        license="Apache-2.0",
        task="classification",
        build=build,
        inputs=(TensorSpec("image", "float32", ("batch", 1, "rows", 16)),),
        outputs=("logits",),
        labels=tuple(str(d) for d in range(10)),
        preprocess={"image": ROWS},
        samples=samples,
        evaluate=evaluate,
        tolerance={"int8": 0.5, "fp16": 0.2},
    )


def train(net: Callable[[], nn.Module], epochs: int = 40) -> nn.Module:
    split = digits(ROWS)
    return fit(
        net,
        classification(),
        (split.train[HELD_OUT:], split.train_labels[HELD_OUT:]),
        epochs=epochs,
        augment=lambda images, labels: (random_affine(images), labels),
        validate=accuracy(split.train[:HELD_OUT], split.train_labels[:HELD_OUT]),
    )
