"""A variational autoencoder (Kingma and Welling, 2014) of digits: 12 numbers tell what a digit looks like.

Three models: the whole, the encoder, and the decoder, which is a generator too. Encoder and decoder are one package of
stages as well.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _data import digits
from _generate import SMALL, frechet, gaussian, generated
from _train import finish, fit, random_affine, report
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

LATENT = 12


class Encoder(nn.Module):
    """Images (batch, 1, 16, 16) to mean and log variance of each of 12 numbers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(2 * width * 16, 2 * LATENT),
        )  # fmt: skip

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.layers(image).chunk(2, dim=1)
        return mean, log_variance


class Decoder(nn.Module):
    """12 numbers to the image (batch, 1, 16, 16) that they tell of."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 2 * width * 16), nn.SiLU(), nn.Unflatten(1, (2 * width, 4, 4)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width, 1, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class VAE(nn.Module):
    """An image to the image again by way of the mean, and mean and log variance."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(image)
        return self.decoder(mean), mean, log_variance


def build() -> VAE:
    return load_weights(VAE(), weights_file(__file__))


def rmse(made: np.ndarray) -> dict[str, float]:
    """Root of the mean squared difference from the test digits, on the scale from -1 to 1."""
    return {"rmse": float(np.sqrt(np.square(made - digits(SMALL).test[: len(made)]).mean()))}


def evaluate(run, n: int) -> dict[str, float]:
    return rmse(run({"image": digits(SMALL).test[:n]})["reconstruction"])


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Real digits of the training split."""
    return {"image": np.random.default_rng(seed).permutation(digits(SMALL).train)[:n]}


def encoder_evaluate(run, n: int) -> dict[str, float]:
    """By what PyTorch's decoder makes of the means."""
    latent = run({"image": digits(SMALL).test[:n]})["latent"]
    with torch.inference_mode():
        return rmse(build().decoder(torch.from_numpy(latent)).numpy())


def made(n: int, seed: int) -> np.ndarray:
    """Images by PyTorch's decoder."""
    with torch.inference_mode():
        return build().decoder(torch.from_numpy(gaussian(n, (LATENT,), seed))).numpy()


COMMON = {"license": "Apache-2.0", "higher_is_better": False, "tolerance": {"int8": 1.0, "fp16": 0.2}}
IMAGE = TensorSpec("image", "float32", ("batch", 1, 16, 16))

SPEC = ModelSpec(
    name="vae",
    description="Variational autoencoder of handwritten digits",
    build=build,
    inputs=(IMAGE,),
    outputs=("reconstruction", "latent", "log_variance"),
    preprocess={"image": SMALL},
    samples=samples,
    evaluate=evaluate,
    **COMMON,
)

ENCODER = ModelSpec(
    name="vae_encoder",
    description="Variational autoencoder of handwritten digits, the encoder",
    build=lambda: build().encoder,
    inputs=(IMAGE,),
    outputs=("latent", "log_variance"),
    preprocess={"image": SMALL},
    samples=samples,
    evaluate=encoder_evaluate,
    **COMMON,
)

DECODER = ModelSpec(
    name="vae_decoder",
    description="Variational autoencoder of handwritten digits, the decoder: a generator",
    task="generation",
    build=lambda: build().decoder,
    inputs=(TensorSpec("latent", "float32", ("batch", LATENT)),),
    outputs=("reconstruction",),
    samples=lambda n, seed: {"latent": gaussian(n, (LATENT,), seed)},
    evaluate=lambda run, n: {"frechet": frechet(generated(run, "latent", gaussian(min(n, 1000), (LATENT,), 1000)))},
    **COMMON,
)

ZOO = Zoo(
    group="generative",
    title="Variational autoencoder",
    data="scikit-learn's digits",
    specs=("SPEC", "ENCODER", "DECODER"),
    stages={"encoder": "ENCODER", "decoder": "DECODER"},
)


def loss(net: VAE, image: Tensor, beta: float = 0.08) -> Tensor:
    """Squared error and, weighted by `beta`, how far the latent is from standard normal (nats)."""
    mean, log_variance = net.encoder(image)
    made = net.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance))
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
    return (F.mse_loss(made, image, reduction="none").sum(dim=(1, 2, 3)) / 16 + beta * nats).mean()


def train() -> nn.Module:
    return fit(
        VAE,
        loss,
        (digits(SMALL).train,),
        epochs=120,
        max_lr=0.004,
        augment=lambda image: (random_affine(image, turn=0.1, scale=0.05, shift=0.05),),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
    print(report(ENCODER), report(DECODER), sep="\n")
