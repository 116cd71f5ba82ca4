"""A diffusion model of digits (Ho et al., 2020; DDIM, Song et al., 2021): a U-Net that takes noise out of images.

The graph is one step of sampling; the loop around it runs where the model is called, and is `sample` below. A step
takes an image from `time` (1 is pure noise, 0 is done) to `next_time`; what it leaves is the state of the next step, so
`edgekit run` and the server's sequences can carry it: the first step's state is noise, and then only times go in.

The net predicts v, a mix of noise and image that is well defined at both ends (Salimans and Ho, 2022), on the cosine
schedule image = cos(pi/2 time) clean + sin(pi/2 time) noise.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _data import digits
from _generate import SMALL, frechet, gaussian
from _train import finish, fit, random_affine
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

STEPS = 10
SHAPE = (1, 16, 16)


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU, told what time it is, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, times: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, channels_in), nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(times, 2 * channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return y + self.shortcut(x)


class Attention(nn.Module):
    """Each place of the image looks at every other (self-attention)."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(seen.transpose(-1, -2).flatten(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Noisy images (batch, 1, side, side) and times (batch,) in 0 to 1 to v, the shape of the images."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        times = 2 * width
        self.clock = nn.Sequential(nn.Linear(times, times), nn.SiLU(), nn.Linear(times, times), nn.SiLU())
        self.register_buffer("pace", math.pi * 2 ** torch.linspace(-1, 6, width), persistent=False)
        widths = [width * 2**i for i in range(depth + 1)]
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(a, a, times) for a in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.middle = Residual(widths[-1], widths[-1], times)
        self.attention = Attention(widths[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths[-2::-1], widths[::-1]))
        self.up = nn.ModuleList(Residual(2 * a, a, times) for a in widths[-2::-1])
        self.head = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * self.pace
        clock = self.clock(torch.cat([angles.sin(), angles.cos()], dim=1))
        x, skips = self.stem(image), []
        for residual, shrink in zip(self.down, self.shrink):
            skips.append(residual(x, clock))
            x = shrink(skips[-1])
        x = self.attention(self.middle(x, clock))
        for grow, residual in zip(self.grow, self.up):
            x = residual(torch.cat([grow(x), skips.pop()], dim=1), clock)
        return self.head(x)


def mix(time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the image and how much noise there is at `time`, to be multiplied with what is `like` images."""
    angle = (0.5 * math.pi * time)[(...,) + (None,) * (like.dim() - 1)]
    return angle.cos(), angle.sin()


class Step(nn.Module):
    """One step of DDIM: the state at `time` to the state at `next_time`, and the image that it is about.

    That image is the net's guess of what is under the noise, kept within `limit`.
    """

    def __init__(self, net: nn.Module, limit: float = 1.0) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, state: Tensor, time: Tensor, next_time: Tensor) -> tuple[Tensor, Tensor]:
        v = self.net(state, time)
        (share, rest), (next_share, next_rest) = mix(time, state), mix(next_time, state)
        image = (share * state - rest * v).clamp(-self.limit, self.limit)
        return next_share * image + next_rest * (rest * state + share * v), image


def sample(run, noise: np.ndarray, steps: int = STEPS) -> dict[str, np.ndarray]:
    """The loop: the outputs of the last step of any runner that starts with `noise` (n, ...)."""
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    found = {"next_state": noise}
    for pair in pairwise(times):
        now, then = (np.full(len(noise), t, np.float32) for t in pair)
        found = run({"state": found["next_state"], "time": now, "next_time": then})
    return found


def noised(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Inputs of a step: images under as much noise as there is at some step of the loop, all of them in turn."""
    step, noise = np.arange(len(images)) % STEPS, gaussian(len(images), images.shape[1:], seed)
    time, next_time = ((1 - i / STEPS).astype(np.float32) for i in (step, step + 1))
    share, rest = (part.numpy() for part in mix(torch.from_numpy(time), torch.from_numpy(images)))
    return {"state": share * images + rest * noise, "time": time, "next_time": next_time}


def build() -> nn.Module:
    return Step(load_weights(UNet(), weights_file(__file__)))


def made(n: int, seed: int) -> np.ndarray:
    """Images by PyTorch."""
    step, order = build(), ("state", "time", "next_time")

    def run(feed):
        with torch.inference_mode():
            found = step(*(torch.from_numpy(feed[name]) for name in order))
        return {"next_state": found[0].numpy(), "image": found[1].numpy()}

    return sample(run, gaussian(n, SHAPE, seed))["image"]


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return noised(np.random.default_rng(seed).permutation(digits(SMALL).train)[:n], seed)


def evaluate(run, n: int) -> dict[str, float]:
    parts = np.array_split(gaussian(min(n, 300), SHAPE, seed=1000), 3)
    return {"frechet": frechet(np.concatenate([sample(run, part)["image"] for part in parts]))}


def step_inputs(*shape: int) -> tuple[TensorSpec, ...]:
    """The inputs of a step on images of `shape`."""
    times = (TensorSpec(name, "float32", ("batch",)) for name in ("time", "next_time"))
    return TensorSpec("state", "float32", ("batch", *shape)), *times


SPEC = ModelSpec(
    name="diffusion_unet",
    description="Diffusion of handwritten digits: one step of DDIM by a U-Net",
    license="Apache-2.0",
    task="generation",
    build=build,
    inputs=step_inputs(*SHAPE),
    outputs=("next_state", "image"),
    states={"state": "next_state"},
    samples=samples,
    evaluate=evaluate,
    higher_is_better=False,
    tolerance={"int8": 3.0, "fp16": 0.5},
)

ZOO = Zoo(group="generative", title="Diffusion U-Net, one step", data="scikit-learn's digits")


def loss(net: nn.Module, image: Tensor) -> Tensor:
    """Squared error of v at times drawn evenly."""
    time, noise = torch.rand(len(image), device=image.device), torch.randn_like(image)
    share, rest = mix(time, image)
    return F.mse_loss(net(share * image + rest * noise, time), share * noise - rest * image)


def train() -> nn.Module:
    return fit(
        UNet,
        loss,
        (digits(SMALL).train,),
        epochs=100,
        max_lr=0.004,
        augment=lambda image: (random_affine(image, turn=0.1, scale=0.05, shift=0.03),),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
