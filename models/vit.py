"""A small Vision Transformer on handwritten digits.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021): patches as tokens, one more token for the class, learned
positions. `vit_b.py` has the full size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from _data import DIGITS, digits
from _train import classification, finish, fit, random_affine, top1
from _transformer import Block
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights


class VisionTransformer(nn.Module):
    """(batch, channels, size, size) to logits (batch, classes)."""

    def __init__(
        self,
        width: int = 48,
        depth: int = 3,
        *,
        heads: int = 4,
        size: int = 32,
        patch: int = 4,
        channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x, _, _ = block(x)
        return self.head(self.norm(x[:, 0]))


def build() -> nn.Module:
    return load_weights(VisionTransformer(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    images = digits().train
    return {"image": images[np.random.default_rng(seed).permutation(len(images))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = digits()
    return {"top1": top1(run, split.test, split.test_labels, n)}


SPEC = ModelSpec(
    name="vit",
    description="Small Vision Transformer on scikit-learn's handwritten digits",
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

ZOO = Zoo(group="attention", title="Vision Transformer", data="scikit-learn's digits")


def train() -> nn.Module:
    split = digits()
    return fit(
        VisionTransformer,
        classification(),
        (split.train, split.train_labels),
        epochs=45,
        max_lr=0.002,
        augment=lambda images, labels: (random_affine(images), labels),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
