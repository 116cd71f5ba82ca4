"""A small residual network with BatchNorm, on seeded random images: a recipe that needs no file."""

import numpy as np
import torch
from torch import nn

from edgekit import ImagePreprocess, ModelSpec, TensorSpec


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = Residual(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.up_norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        y = self.block(torch.relu(self.norm(self.stem(image))))
        y = torch.relu(self.up_norm(self.up(y)))
        return self.head(self.drop(y.mean(dim=(2, 3))))


def build():
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return net  # in training mode: export puts it into eval mode


def samples(n, seed):
    return {"image": np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)}


def evaluate(run, n):
    """Agreement with a fixed answer on 40 images: what matters here is that it is measured."""
    images = samples(40, 1)["image"]
    return {"spread": float(run({"image": images})["logits"].std())}


def training_net():
    """For path.py:NAME with --input."""
    return build()


SPEC = ModelSpec(
    name="residual",
    description="a small residual network",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 3, 16, 16)),),
    outputs=("logits",),
    labels=("a", "b", "c", "d", "e"),
    preprocess={"image": ImagePreprocess(height=16, width=16)},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.5},
)
