"""DCGAN (Radford et al., 2016) on digits: transposed convolutions draw, strided convolutions judge.

Two models: the generator makes a digit of 32 random numbers, and the discriminator tells real digits from made ones.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from _data import DIGITS, digits
from _generate import adversarial, auc, frechet, gaussian, generated
from _train import report, save
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

NOISE = 32


class Generator(nn.Module):
    """(batch, 32) normal numbers to images (batch, 1, 32, 32) in [-1, 1]; each of three steps doubles the side."""

    def __init__(self, width: int = 12, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in reversed(range(depth + 1))]
        self.side = 32 // 2 ** (depth + 1)
        self.start = nn.Linear(NOISE, widths[0] * self.side**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for wide, narrow in pairwise(widths):
            up = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(self.start(noise).unflatten(1, (-1, self.side, self.side)))


class Discriminator(nn.Module):
    """Images (batch, 1, 32, 32) to a logit (batch, 1): large for real ones."""

    def __init__(self, width: int = 12, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(depth):
            down = nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 4, stride=2, padding=1, bias=False)
            layers += [down, nn.BatchNorm2d(width * 2 ** (i + 1)), nn.LeakyReLU(0.2)]
        side = 32 // 2 ** (depth + 1)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 2**depth * side**2, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


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
    real = np.random.default_rng(seed).permutation(digits(DIGITS).train)[: (n + 1) // 2]
    both = np.stack([real, made(len(real), seed)], axis=1)
    return {"image": both.reshape(-1, 1, 32, 32)[:n]}


def discriminator_evaluate(run, n: int) -> dict[str, float]:
    real = digits(DIGITS).test[:n]
    return {"auc": auc(run, made(len(real), seed=1000), real)}


SPEC = ModelSpec(
    name="dcgan",
    description="DCGAN, the generator of handwritten digits",
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
    name="dcgan_discriminator",
    description="DCGAN, the discriminator of real and made digits",
    license="Apache-2.0",
    build=build_discriminator,
    inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
    outputs=("logit",),
    preprocess={"image": DIGITS},
    samples=discriminator_samples,
    evaluate=discriminator_evaluate,
    tolerance={"int8": 1.0, "fp16": 0.2},
)

ZOO = Zoo(
    group="generative",
    title="DCGAN",
    data="scikit-learn's digits",
    specs=("SPEC", "DISCRIMINATOR"),
    parts=("", "discriminator"),
)


def train() -> tuple[nn.Module, nn.Module]:
    return adversarial((Generator, Discriminator), digits(DIGITS).train, noise=NOISE, epochs=100, max_lr=0.001)


if __name__ == "__main__":
    generator, discriminator = train()
    save(generator, __file__)
    save(discriminator, __file__, part="discriminator")
    print(report(SPEC), report(DISCRIMINATOR), sep="\n")
