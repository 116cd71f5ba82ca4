"""Inputs that forward() takes in another order, two named dimensions, a state, a default, a dictionary of outputs."""

import numpy as np
import torch
from torch import nn

from edgekit import ModelSpec, TensorSpec


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.GRUCell(4, 6)

    def forward(self, gain, state, sound):
        pooled = sound.mean(dim=2) * gain
        new = self.lstm(pooled, state[0])
        return {"score": new.sum(dim=1), "next": new[None], "sound": sound}


def samples(n, seed):
    return {"sound": np.random.default_rng(seed).standard_normal((n, 4, 9)).astype(np.float32)}


SPEC = ModelSpec(
    name="two_inputs",
    build=Net,
    inputs=(
        TensorSpec("sound", "float32", ("batch", 4, "time")),
        TensorSpec("state", "float32", (1, "batch", 6)),
        TensorSpec("gain", "float32", ()),
    ),
    samples=samples,
    states={"state": "next"},
    defaults={"gain": np.float32(0.5)},
)
