"""ViT-B/16 at full size, with random weights: for shape, speed and compilation only.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021): 12 blocks of width 768 with 12 heads, patches of 16x16.
"""

from __future__ import annotations

from torch import nn

from _full_size import IMAGENET, agreement, samples, with_random_weights
from _zoo import Zoo
from edgekit import ModelSpec, TensorSpec
from vit import VisionTransformer

FEW = 8  # photographs: each takes 35 billion operations


def build() -> nn.Module:
    return with_random_weights(
        lambda: VisionTransformer(768, 12, heads=12, size=224, patch=16, channels=3, classes=1000)
    )


agrees = agreement(build)

SPEC = ModelSpec(
    name="vit_b",
    description="ViT-B/16, full size, random weights",
    license="Apache-2.0",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 224, 224)),),
    outputs=("logits",),
    preprocess={"image": IMAGENET},
    samples=lambda n, seed: samples(min(n, FEW), seed),
    evaluate=lambda run, n: agrees(run, min(n, FEW)),
    tolerance={"int8": 5.0, "fp16": 0.5},
)

ZOO = Zoo(
    group="attention",
    title="ViT-B/16",
    data="photographs",
    weights="random",
    arguments={"quantize": ("--samples", "8", "--plain")},
)
