"""Four small nets trained on scikit-learn's real digits, plain and hostile.

A hostile net is the same function with channels rescaled between consecutive layers (log-uniform over 2^-spread to
2^spread) and outliers ahead of LayerNorm's consumers: float outputs stay, ranges become what large models have.
Training takes under a minute a net on two cores; weights are kept in a folder so that it happens once.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import ModelSpec, TensorSpec
from edgekit.recipe import load_recipe, spec_from_recipe

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(tempfile.gettempdir()) / "edgekit-bench-nets"
NAMES = ("cnn", "mobilenet", "vit", "lstm")
TURNS = 8
"""Augmented copies of each test image: the plain test split is too easy to tell tools apart."""

NOISE = 0.15
"""Standard deviation of what is added to pixels in -1..1: the CNNs are right on 99 % of such images."""


@cache
def demo() -> Any:
    """The demo recipe as a module: its data, its CNN and its augmentation are used here."""
    return sys.modules[spec_from_recipe(ROOT / "models" / "digits_cnn.py").build.__module__]


def _harder(images: np.ndarray, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    noisy = demo().random_affine(torch.from_numpy(images)) + NOISE * torch.randn(images.shape)
    return np.asarray(noisy.clamp(-1, 1).numpy(), np.float32)


@cache
def hard_test() -> tuple[np.ndarray, np.ndarray]:
    """The test split and augmented copies of it: images (n, 1, 32, 32) and labels."""
    _, _, images, labels = demo().digits()
    copies = [images, *(_harder(images, seed) for seed in range(TURNS))]
    return np.concatenate(copies), np.concatenate([labels] * (TURNS + 1))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Training images turned and noised as those of the test are."""
    train = demo().digits()[0]
    chosen = train[np.random.default_rng(seed).integers(0, len(train), n)]
    return {"image": _harder(chosen, seed + 1000)}


class MobileNet(nn.Module):
    """Depthwise-separable blocks with BatchNorm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*self._unit(1, 16, 3, 2, 1)]
        for wide, out, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1)):
            layers += [*self._unit(wide, wide, 3, stride, wide), *self._unit(wide, out, 1, 1, 1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(96, 10)

    @staticmethod
    def _unit(wide: int, out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(wide, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, expand: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, expand * width), nn.Linear(expand * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """4x4 patches, 64 tokens, three blocks."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class RowLSTM(nn.Module):
    """The 32 rows of the picture, one after the other, through an LSTM."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Linear(32, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.lstm(F.relu(self.embed(image[:, 0])))[0][:, -1])


def _train(net: nn.Module, *, epochs: int, rate: float, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(a) for a in demo().digits()[:2])
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for _ in range(epochs):
        net.train()
        for index in torch.randperm(len(images)).split(64):
            if len(index) < 64:
                continue
            loss = F.cross_entropy(net(demo().random_affine(images[index])), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def trained(name: str) -> nn.Module:
    """The net called `name` with its weights, trained now if they are not in the cache."""
    if name == "cnn":
        return demo().build()
    kinds: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
        "mobilenet": (MobileNet, 30, 0.01),
        "vit": (ViT, 40, 0.003),
        "lstm": (RowLSTM, 45, 0.005),
    }
    torch.manual_seed(0)
    make, epochs, rate = kinds[name]
    net = make()
    # another split of the data is another net: weights that saw today's test images would flatter every tool
    split = hashlib.sha256(demo().digits()[0].tobytes()).hexdigest()[:12]
    file = CACHE / f"{name}-{split}.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    _train(net, epochs=epochs, rate=rate)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), file)
    return net


@torch.no_grad()
def hostile(net: nn.Module, *, spread: float = 3.0, seed: int = 0) -> nn.Module:
    """`net` rescaled in place: the same function, with channels over 2^-spread .. 2^spread."""
    random = np.random.default_rng(seed)

    def factors(count: int) -> Tensor:
        return torch.from_numpy(np.exp2(random.uniform(-spread, spread, count)).astype(np.float32))

    def scale_norm(norm: nn.Module, factor: Tensor) -> None:
        norm.weight.mul_(factor)  # type: ignore[operator]
        norm.bias.mul_(factor)  # type: ignore[operator]

    def into(layer: nn.Module, factor: Tensor) -> None:
        weight: Any = layer.weight
        shape = [1, -1] + [1] * (weight.dim() - 2) if weight.shape[1] > 1 else [-1] + [1] * (weight.dim() - 1)
        weight.div_(factor.reshape(shape))

    if isinstance(net, MobileNet):
        convs = [m for m in net.features if isinstance(m, nn.Conv2d)]
        norms = [m for m in net.features if isinstance(m, nn.BatchNorm2d)]
        for norm, after in zip(norms, [*convs[1:], net.head]):
            factor = factors(norm.num_features)
            scale_norm(norm, factor)
            into(after, factor)
    elif isinstance(net, ViT):
        for block in net.blocks:
            for norm, after in ((block.norm1, block.qkv), (block.norm2, block.fc1)):
                factor = factors(norm.weight.numel())
                factor[torch.from_numpy(random.choice(len(factor), 3, replace=False))] *= 16  # outliers
                scale_norm(norm, factor)
                into(after, factor)
            width = block.out.weight.shape[1]
            factor = factors(width)
            block.qkv.weight[2 * width :].mul_(factor[:, None])
            block.qkv.bias[2 * width :].mul_(factor)
            into(block.out, factor)
    elif isinstance(net, RowLSTM):
        factor = factors(net.embed.weight.shape[0])
        net.embed.weight.mul_(factor[:, None])
        net.embed.bias.mul_(factor)
        net.lstm.weight_ih_l0.div_(factor[None])
    else:
        for block in net.blocks:
            factor = factors(block.norm1.num_features)
            scale_norm(block.norm1, factor)
            into(block.conv2, factor)
    return net


def recipe(name: str, *, is_hostile: bool = False) -> ModelSpec:
    """The net as a recipe: samples from the training split, judged on the hard test."""
    net = trained(name)
    if is_hostile:
        hostile(net)

    def evaluate(run: Any, n: int) -> dict[str, float]:
        images, labels = hard_test()
        images, labels = images[:n], labels[:n]
        hits = 0
        for start in range(0, len(images), 100):
            scores = run({"image": images[start : start + 100]})["scores"]
            hits += int((scores.argmax(axis=1) == labels[start : start + 100]).sum())
        return {"top1": hits / len(images)}

    return ModelSpec(
        name=f"{name}_hostile" if is_hostile else name,
        build=lambda: net,
        inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
        outputs=("scores",),
        task="classification",
        samples=samples,
        evaluate=evaluate,
    )


LARGE = ("resnet50", "mobilenetv2", "encoder")
"""Nets for timing only: their weights are random, their shapes are those of the well-known ones."""


class Encoder(nn.Module):
    """BERT-base's shape: blocks of width 768, 12 heads, on embedded tokens (batch, tokens, 768)."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(768, 12, 4) for _ in range(depth)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens)


def large(name: str) -> ModelSpec:
    """A large net as a recipe; images are smooth noise, so only its speed means anything."""
    torch.manual_seed(0)
    zoo = {"resnet50": "resnet50.py:ResNet50", "mobilenetv2": "mobilenet_v2.py:MobileNetV2"}
    net = load_recipe(ROOT / "models" / zoo[name])() if name in zoo else Encoder()
    shape = (128, 768) if name == "encoder" else (3, 224, 224)

    def noise(n: int, seed: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)}

    with torch.no_grad():
        net.train()(torch.from_numpy(noise(8, 0)["x"]))  # BatchNorm statistics that fit the weights
    net.eval()
    return ModelSpec(
        name=name,
        build=lambda: net,
        inputs=(TensorSpec("x", "float32", ("batch", *shape)),),
        outputs=("scores",),
        samples=noise,
    )
