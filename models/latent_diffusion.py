"""Latent diffusion (Rombach et al., 2022): diffusion makes the 12 numbers of the VAE, and its decoder the image.

SPEC is the whole, one step of sampling; as stages it is the denoiser and the decoder of vae.py. Each step shows the
image that it is about, so a caller can watch, or stop early.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

import vae
from _data import digits
from _generate import SMALL, frechet, gaussian
from _train import finish, fit, report
from _zoo import Zoo, weights_file
from diffusion_unet import Step, loss, noised, sample, step_inputs
from edgekit import ModelSpec, load_weights
from vae import DECODER, LATENT

LIMIT = 4.0
"""No number of a digit is further from zero than this."""


class Residual(nn.Module):
    """A layer on top of what comes in, told what time it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(2 * width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + self.outer(nn.functional.silu(self.inner(torch.cat([self.norm(x), time], dim=1))))


class Denoiser(nn.Module):
    """Noisy numbers (batch, 12) and times (batch,) in 0 to 1 to v."""

    def __init__(self, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("pace", math.pi * 2 ** torch.linspace(-1, 4, width // 2), persistent=False)
        self.stem, self.head = nn.Linear(LATENT, width), nn.Linear(width, LATENT)
        self.layers = nn.ModuleList(Residual(width) for _ in range(depth))

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * self.pace
        clock = torch.cat([angles.sin(), angles.cos()], dim=1)
        x = self.stem(latent)
        for layer in self.layers:
            x = layer(x, clock)
        return self.head(x)


class LatentDiffusion(nn.Module):
    """A step, and what the decoder makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.decoder = build_denoiser(), vae.build().decoder

    def forward(self, state: Tensor, time: Tensor, next_time: Tensor) -> tuple[Tensor, Tensor]:
        next_state, latent = self.step(state, time, next_time)
        return next_state, self.decoder(latent)


def build_denoiser() -> nn.Module:
    return Step(load_weights(Denoiser(), weights_file(__file__)), LIMIT)


def latents() -> np.ndarray:
    """What the VAE's encoder makes of the training digits: float32 (n, 12)."""
    with torch.inference_mode():
        return vae.build().encoder(torch.from_numpy(digits(SMALL).train))[0].numpy()


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return noised(np.random.default_rng(seed).permutation(latents())[:n], seed)


def evaluate(run, n: int) -> dict[str, float]:
    return {"frechet": frechet(sample(run, gaussian(min(n, 1000), (LATENT,), seed=1000))["reconstruction"])}


def denoiser_evaluate(run, n: int) -> dict[str, float]:
    """By what PyTorch's decoder makes of the numbers."""
    latent = sample(run, gaussian(min(n, 1000), (LATENT,), seed=1000))["latent"]
    with torch.inference_mode():
        return {"frechet": frechet(vae.build().decoder(torch.from_numpy(latent)).numpy())}


def made(n: int, seed: int) -> np.ndarray:
    """Images by PyTorch."""
    whole, order = LatentDiffusion(), ("state", "time", "next_time")

    def run(feed):
        with torch.inference_mode():
            found = whole(*(torch.from_numpy(feed[name]) for name in order))
        return {"next_state": found[0].numpy(), "image": found[1].numpy()}

    return sample(run, gaussian(n, (LATENT,), seed))["image"]


COMMON = {
    "license": "Apache-2.0",
    "task": "generation",
    "inputs": step_inputs(LATENT),
    "states": {"state": "next_state"},
    "samples": samples,
    "higher_is_better": False,
    "tolerance": {"int8": 3.0, "fp16": 0.5},
}

SPEC = ModelSpec(
    name="latent_diffusion",
    description="Latent diffusion of handwritten digits: one step of DDIM, and the VAE's decoder",
    build=LatentDiffusion,
    outputs=("next_state", "reconstruction"),
    evaluate=evaluate,
    **COMMON,
)

DENOISER = ModelSpec(
    name="latent_denoiser",
    description="Latent diffusion of handwritten digits: one step of DDIM",
    build=build_denoiser,
    outputs=("next_state", "latent"),
    evaluate=denoiser_evaluate,
    **COMMON,
)

ZOO = Zoo(
    group="generative",
    title="Latent diffusion, one step and decoder",
    data="scikit-learn's digits",
    stages={"denoiser": "DENOISER", "decoder": "DECODER"},
)


def train() -> nn.Module:
    return fit(Denoiser, loss, (latents(),), epochs=400, batch=256, max_lr=0.004)


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
    print(report(DENOISER), report(DECODER), sep="\n")
