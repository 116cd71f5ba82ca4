"""Full-size nets with random weights: they show shape, speed and what compilers take, and their answers mean nothing.

Weights are drawn so that activations neither vanish nor explode (He et al., "Delving Deep into Rectifiers", 2015), and
the statistics of BatchNorm come from real photographs, so that ranges, and what INT8 makes of them, are lifelike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from _data import photo_crops
from _zoo import Zoo
from edgekit import ImagePreprocess, ModelSpec, TensorSpec

IMAGENET = ImagePreprocess(height=224, width=224, resize="crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""How nets trained on ImageNet take a photograph."""

TOLERANCE = {"int8": 3.0, "fp16": 0.2}
QUICK = {"quantize": ("--samples", "8", "--plain")}
"""Arguments with which a net of this size is quantized in about a minute: few inputs, no accuracy recovery."""


@cache
def photos(n: int, seed: int, *, test: bool = False, preprocess: ImagePreprocess = IMAGENET) -> np.ndarray:
    """`n` cuts of real photographs as a net takes them, float32 (n, 3, height, width)."""
    crops = photo_crops(n, seed, preprocess.height, test=test)
    return np.concatenate([preprocess.from_pixels(crop) for crop in crops])


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Cuts of photographs; at most 8, for a full-size net is slow enough with them."""
    return {"image": photos(min(n, 8), seed)}


@torch.no_grad()
def with_random_weights(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The net that `make` gives with fresh weights, the same for the same seed, in eval mode."""
    torch.manual_seed(seed)
    net = make()
    norms = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of this batch, whole
            norms.append(module)
    if norms:
        net.train()(torch.from_numpy(photos(16, 0)))
    for module in norms:
        module.momentum = 0.1
    return net.eval()


def agreement(build: Callable[[], nn.Module]) -> Callable[[Any, int], Mapping[str, float]]:
    """The `evaluate` of a net without meaning: how well a variant follows PyTorch on photographs new to it.

    The cosine between its outputs and PyTorch's, over all images together. That is a mild judge: to a net with random
    weights photographs look alike, and only 3 % (ResNet-50) to 31 % (ViT-B) of its outputs tell them apart.
    """

    @cache
    def reference() -> np.ndarray:
        net, images = build(), torch.from_numpy(photos(8, 1, test=True))
        with torch.inference_mode():
            return np.concatenate([net(part).numpy() for part in images.split(4)])

    def evaluate(run: Any, n: int) -> dict[str, float]:
        images = photos(8, 1, test=True)[:n]
        expected = reference()[:n].astype(np.float64)
        parts = [next(iter(run({"image": images[i : i + 4]}).values())) for i in range(0, len(images), 4)]
        given, wanted = np.concatenate(parts).astype(np.float64), expected
        return {"cosine": float((given * wanted).sum() / np.sqrt((given**2).sum() * (wanted**2).sum()))}

    return evaluate


def full_size(
    name: str, title: str, make: Callable[[], nn.Module], *, group: str = "classic CNNs"
) -> tuple[ModelSpec, Zoo]:
    """`SPEC` and `ZOO` of the net that `make` gives, for 1000 classes of photographs, with random weights."""

    def build() -> nn.Module:
        return with_random_weights(make)

    spec = ModelSpec(
        name=name,
        description=f"{title}, full size, random weights",
        license="Apache-2.0",
        build=build,
        inputs=(TensorSpec("image", "float32", ("batch", 3, 224, 224)),),
        outputs=("logits",),
        preprocess={"image": IMAGENET},
        samples=samples,
        evaluate=agreement(build),
        tolerance=TOLERANCE,
    )
    return spec, Zoo(group=group, title=title, data="photographs", weights="random", arguments=QUICK)
