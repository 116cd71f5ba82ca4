"""What generators of digits share: how good their pictures are, a sheet to look at, and how GANs are trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import digits_cnn
from _data import digits
from _train import DEVICE, Optimizer, random_affine
from edgekit import ImagePreprocess

SMALL = ImagePreprocess(height=16, width=16, color="L", mean=(0.5,), std=(0.5,))
"""A digit as most generators make it: (1, 16, 16), -1 is background and 1 is ink."""


def gaussian(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What generators start from: float32 (n, *shape), standard normal."""
    return np.random.default_rng(seed).standard_normal((n, *shape), dtype=np.float32)


@cache
def _reader() -> digits_cnn.DigitsCNN:
    return digits_cnn.build()


def features(images: np.ndarray) -> np.ndarray:
    """What the classifier digits_cnn sees in images (n, 1, height, width): float64 (n, 64), before its last layer."""
    net = _reader()
    with torch.inference_mode():
        large = F.interpolate(torch.as_tensor(images), (32, 32), mode="bilinear", align_corners=False)
        seen = net.blocks(net.stem(large)).mean(dim=(2, 3))
    return seen.double().numpy()


def frechet(images: np.ndarray) -> float:
    """How far the distribution of `images` is from that of the test digits; 0 is the same, training digits reach 0.01.

    The squared Fréchet distance of two Gaussians (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017)
    over features of digits_cnn instead of Inception, divided by the variance of the real ones: 1 is as far as a
    generator that makes one average picture would be.
    """
    made, real = features(images), _real(images.shape[-1])
    shift = made.mean(axis=0) - real.mean(axis=0)
    one, other = np.cov(made, rowvar=False), np.cov(real, rowvar=False)
    shared = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0)).sum()
    distance = shift @ shift + np.trace(one) + np.trace(other) - 2 * shared
    return float(max(0.0, distance) / np.trace(other))


@cache
def _real(size: int) -> np.ndarray:
    return features(digits(ImagePreprocess(height=size, width=size, color="L", mean=(0.5,), std=(0.5,))).test)


def generated(run, feed: str, noise: np.ndarray, batch: int = 100) -> np.ndarray:
    """The first output of any runner for each row of `noise`."""
    parts = [noise[i : i + batch] for i in range(0, len(noise), batch)]
    return np.concatenate([next(iter(run({feed: part}).values())) for part in parts])


def sheet(images: np.ndarray, file: str | Path, columns: int = 12) -> None:
    """Write images (n, 1, height, width) in -1 to 1 as one picture."""
    rows = len(images) // columns
    bordered = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)), constant_values=-0.5)
    height, width = bordered.shape[1:]
    tiles = bordered[: rows * columns].reshape(rows, columns, height, width).swapaxes(1, 2)
    pixels = np.clip(127.5 * (tiles.reshape(rows * height, columns * width) + 1), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).resize((4 * columns * width, 4 * rows * height)).save(file)


def adversarial(
    make: tuple[Callable[[], nn.Module], Callable[[], nn.Module]],
    images: np.ndarray,
    *,
    noise: int,
    epochs: int,
    batch: int = 64,
    max_lr: float = 0.002,
    seed: int = 0,
) -> tuple[nn.Module, nn.Module]:
    """Train a generator (noise -> images) against a discriminator (images -> one logit); both in eval mode.

    Non-saturating loss; real and made images are turned and shifted alike before they are judged, so that the
    discriminator cannot learn a small set by heart (Zhao et al., "Differentiable Augmentation", 2020). The generator
    returned is the running average of the trained one.
    """
    torch.manual_seed(seed)
    generator, discriminator = (m().to(DEVICE).train() for m in make)
    real = torch.as_tensor(images)
    steps = len(real) // batch
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    makes = Optimizer(generator, steps=epochs * steps, max_lr=max_lr, betas=(0.5, 0.99))
    judges = Optimizer(discriminator, steps=epochs * steps, max_lr=max_lr, betas=(0.5, 0.99))

    def judge(pictures: Tensor) -> Tensor:
        return discriminator(random_affine(pictures, turn=0.15, scale=0.1, shift=0.1))

    for epoch in range(epochs):
        start, losses = time.perf_counter(), [0.0, 0.0]
        for index in torch.randperm(len(real))[: steps * batch].split(batch):
            with judges.precision():
                made = generator(torch.randn(batch, noise, device=DEVICE))
                right, wrong = judge(real[index].to(DEVICE)), judge(made.detach())
            losses[0] += judges.step((F.softplus(-right) + F.softplus(wrong)).mean())
            with makes.precision():
                verdict = judge(made)
            losses[1] += makes.step(F.softplus(-verdict).mean())
            average.update_parameters(generator)
        if epoch % 10 == 9:
            line = f"epoch {epoch + 1:3d}/{epochs}  {time.perf_counter() - start:4.1f} s"
            print(f"{line}  discriminator {losses[0] / steps:.3f}  generator {losses[1] / steps:.3f}", flush=True)
    return average.module.cpu().eval(), discriminator.cpu().eval()


def auc(run, made: np.ndarray, real: np.ndarray, feed: str = "image") -> float:
    """How often a discriminator's logit is larger for a real image than for a made one; 0.5 is guessing."""
    scores = [np.concatenate([next(iter(run({feed: x}).values())).ravel() for x in np.array_split(images, 6)])
              for images in (real, made)]  # fmt: skip
    return float((scores[0][:, None] > scores[1]).mean())
