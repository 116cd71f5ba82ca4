"""What a neuron's membrane does in the next 32 ms: convolutions over the past, an LSTM, and all steps at once.

The series is a real recording that comes with Matplotlib: `membrane.dat`, 6 s at 2 kHz in volts, here at 500 Hz and in
units of 100 mV above -400 mV. The neuron spikes regularly at first and then irregularly; the test part, 3.5 s to 4.5 s,
has both.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _train import finish, fit
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

PAST, AHEAD = 96, 16
TEST = slice(1750, 2250)


@cache
def series() -> np.ndarray:
    """The recording, float32 (3000,)."""
    matplotlib = find_spec("matplotlib")
    if matplotlib is None or matplotlib.origin is None:
        raise ModuleNotFoundError("the recording comes with Matplotlib: pip install matplotlib")
    file = Path(matplotlib.origin).parent / "mpl-data" / "sample_data" / "membrane.dat"
    return np.fromfile(file, "<f4").reshape(-1, 4).mean(axis=1) * 10 + 4


def windows(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pasts (n, PAST) of the parts and what came after them (n, AHEAD)."""
    every = np.concatenate([np.lib.stride_tricks.sliding_window_view(p, PAST + AHEAD) for p in parts])
    return every[:, :PAST].copy(), every[:, PAST:].copy()


@cache
def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Windows to train on and windows to test on; no sample is in both."""
    whole = series()
    return windows(whole[: TEST.start], whole[TEST.stop :]), windows(whole[TEST])


class Forecaster(nn.Module):
    """The past (batch, steps) to the next steps (batch, AHEAD), as differences from the last value."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        sizes = [1] + [width // 2] * depth
        self.convolutions = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(a, b, 5, 2, 2), nn.ReLU()) for a, b in pairwise(sizes))
        )
        self.lstm = nn.LSTM(width // 2, width, batch_first=True)
        self.head = nn.Linear(width, AHEAD)

    def forward(self, past: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.convolutions(past.unsqueeze(1)).transpose(1, 2))
        return past[:, -1:] + self.head(last[-1])


def build() -> nn.Module:
    return load_weights(Forecaster(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    past, _ = data()[0]
    return {"past": past[np.random.default_rng(seed).permutation(len(past))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    """Skill: the share of the squared error that is gone, compared with the last value staying; and the error in mV."""
    past, ahead = (part[:n] for part in data()[1])
    error = np.asarray(run({"past": past})["ahead"], np.float64) - ahead
    staying = past[:, -1:] - ahead
    return {"skill": float(1 - (error**2).sum() / (staying**2).sum()), "mae_mv": float(100 * np.abs(error).mean())}


SPEC = ModelSpec(
    name="forecaster",
    description="1-D CNN and LSTM that forecast a neuron's membrane potential",
    license="Apache-2.0",
    task="forecasting",
    build=build,
    inputs=(TensorSpec("past", "float32", ("batch", "steps")),),
    outputs=("ahead",),
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 2.0, "fp16": 0.5},
)

ZOO = Zoo(group="audio, time series", title="1-D CNN and LSTM", data="a neuron's membrane potential")


def train() -> nn.Module:
    past, ahead = data()[0]
    held = np.zeros(len(past), bool)
    held[1300:1500] = True

    def validate(net: nn.Module) -> float:
        return -float(F.mse_loss(net(torch.from_numpy(past[held])), torch.from_numpy(ahead[held])).detach())

    return fit(
        Forecaster,
        lambda net, past, ahead: F.smooth_l1_loss(net(past), ahead),
        (past[~held], ahead[~held]),
        epochs=40,
        max_lr=0.005,
        augment=lambda past, ahead: (past + 0.02 * torch.randn_like(past), ahead),
        validate=validate,
        patience=40,
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
