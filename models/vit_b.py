"""ViT-B/16 at full size, with random weights: for shape, speed and compilation only.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021): 12 blocks of width 768 with 12 heads, patches of 16x16.
"""

from __future__ import annotations

from torch import nn

from _full_size import full_size
from vit import VisionTransformer


def make() -> nn.Module:
    return VisionTransformer(768, 12, heads=12, size=224, patch=16, channels=3, classes=1000)


SPEC, ZOO = full_size("vit_b", "ViT-B/16", make, group="attention")
