"""A small residual CNN that reads handwritten digits.

The data are scikit-learn's 1,797 real digits, which come with the library. 600 of them are the test split, which
training never sees. `python models/digits_cnn.py` trains again and writes `digits_cnn.safetensors` beside this file.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

WEIGHTS = Path(__file__).with_suffix(".safetensors")
PREPROCESS = ImagePreprocess(height=32, width=32, color="L", mean=(0.5,), std=(0.5,))
TEST_IMAGES = 600


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; `stride` 2 halves the image."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitsCNN(nn.Module):
    """(batch, 1, 32, 32) in [-1, 1] to ten logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width, 2), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(image))
        return self.head(features.mean(dim=(2, 3)))


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; images went through PREPROCESS.

    The file is read where scikit-learn keeps it: importing the library would take longer than everything else here.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn")
    table = np.loadtxt(Path(sklearn.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    labels = table[:, -1]
    pictures = [Image.fromarray(d) for d in np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)]
    images = np.concatenate([PREPROCESS.from_image(p) for p in pictures])
    test = np.zeros(len(labels), bool)
    test[np.random.default_rng(0).permutation(len(labels))[:TEST_IMAGES]] = True
    return images[~test], labels[~test], images[test], labels[test]


def build() -> nn.Module:
    return load_weights(DigitsCNN(), WEIGHTS)


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    """Real images of the training split: calibrating on test images would flatter the result."""
    train = digits()[0]
    return {"image": train[np.random.default_rng(seed).permutation(len(train))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    """Top-1 on the test split."""
    _, _, images, labels = digits()
    images, labels = images[:n], labels[:n]
    hits = 0
    for start in range(0, len(images), 100):
        logits = run({"image": images[start : start + 100]})["logits"]
        hits += int((logits.argmax(axis=1) == labels[start : start + 100]).sum())
    return {"top1": hits / len(images)}


SPEC = ModelSpec(
    name="digits_cnn",
    description="Residual CNN on scikit-learn's handwritten digits",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.3, "fp16": 0.2},
)


def train(epochs: int = 20, batch: int = 64, seed: int = 0) -> nn.Module:
    """Seeded training with random shifts, turns and scales, AdamW, a one-cycle schedule and clipped gradients."""
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(a) for a in digits()[:2])
    net = DigitsCNN()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for index in torch.randperm(len(images)).split(batch):
            if len(index) < batch:
                continue
            loss = F.cross_entropy(net(_augment(images[index])), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2d}/{epochs}  loss {total / (len(images) // batch):.3f}")
    return net.eval()


def _augment(images: Tensor) -> Tensor:
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.5  # radians
    scale = 1 + (torch.rand(n) - 0.5) * 0.3
    shift = (torch.rand(n, 2) - 0.5) * 0.3
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # + 1: what comes in from outside is background


if __name__ == "__main__":
    trained = train()
    with torch.inference_mode():
        score = evaluate(lambda feed: {"logits": trained(torch.from_numpy(feed["image"])).numpy()}, TEST_IMAGES)
    save_file(trained.state_dict(), WEIGHTS)
    print(f"top-1 {100 * score['top1']:.2f} % on {TEST_IMAGES} test images; wrote {WEIGHTS.name}")
