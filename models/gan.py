"""A generative adversarial network of dense layers (Goodfellow et al., 2014) that draws digits.

Two models: the generator makes a digit of 32 random numbers, and the discriminator tells real digits from made ones.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from _data import digits
from _generate import SMALL, adversarial, auc, frechet, gaussian, generated
from _train import report, save
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

NOISE = 32


def dense(sizes: tuple[int, ...], *, norm: bool) -> nn.Sequential:
    """Linear layers of these sizes, with leaky ReLU between them."""
    layers: list[nn.Module] = []
    for size, wider in pairwise(sizes[:-1]):
        layers += [nn.Linear(size, wider), *([nn.BatchNorm1d(wider)] if norm else []), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class Generator(nn.Module):
    """(batch, 32) normal numbers to images (batch, 1, 16, 16) in [-1, 1]."""

    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.layers = dense((NOISE, *(width * 2**i for i in range(depth)), 16 * 16), norm=True)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.layers(noise)).unflatten(1, (1, 16, 16))


class Discriminator(nn.Module):
    """Images (batch, 1, 16, 16) to a logit (batch, 1): large for real ones."""

    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.layers = dense((16 * 16, *(width * 2**i for i in reversed(range(depth))), 1), norm=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.flatten(1))


def build() -> nn.Module:
    return load_weights(Generator(), weights_file(__file__))


def build_discriminator() -> nn.Module:
    return load_weights(Discriminator(), weights_file(__file__, "discriminator"))


def made(n: int, seed: int) -> np.ndarray:
    """Images by the trained generator."""
    with torch.inference_mode():
        return build()(torch.from_numpy(gaussian(n, (NOISE,), seed))).numpy()


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return {"noise": gaussian(n, (NOISE,), seed)}


def evaluate(run, n: int) -> dict[str, float]:
    return {"frechet": frechet(generated(run, "noise", gaussian(min(n, 1000), (NOISE,), seed=1000)))}


def discriminator_samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Real and made images in turn."""
    real = np.random.default_rng(seed).permutation(digits(SMALL).train)[: (n + 1) // 2]
    both = np.stack([real, made(len(real), seed)], axis=1)
    return {"image": both.reshape(-1, 1, 16, 16)[:n]}


def discriminator_evaluate(run, n: int) -> dict[str, float]:
    real = digits(SMALL).test[:n]
    return {"auc": auc(run, made(len(real), seed=1000), real)}


SPEC = ModelSpec(
    name="gan",
    description="Dense GAN, the generator of handwritten digits",
    license="Apache-2.0",
    task="generation",
    build=build,
    inputs=(TensorSpec("noise", "float32", ("batch", NOISE)),),
    outputs=("image",),
    samples=samples,
    evaluate=evaluate,
    higher_is_better=False,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

DISCRIMINATOR = ModelSpec(
    name="gan_discriminator",
    description="Dense GAN, the discriminator of real and made digits",
    license="Apache-2.0",
    build=build_discriminator,
    inputs=(TensorSpec("image", "float32", ("batch", 1, 16, 16)),),
    outputs=("logit",),
    preprocess={"image": SMALL},
    samples=discriminator_samples,
    evaluate=discriminator_evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(
    group="generative",
    title="GAN of dense layers",
    data="scikit-learn's digits",
    specs=("SPEC", "DISCRIMINATOR"),
    parts=("", "discriminator"),
)


def train() -> tuple[nn.Module, nn.Module]:
    return adversarial((Generator, Discriminator), digits(SMALL).train, noise=NOISE, epochs=150)


if __name__ == "__main__":
    generator, discriminator = train()
    save(generator, __file__)
    save(discriminator, __file__, part="discriminator")
    print(report(SPEC), report(DISCRIMINATOR), sep="\n")
