"""Keyword spotting: MFCC and a CNN of depthwise separable convolutions, in one graph that takes sound.

Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers" (2017). A recording goes in as 16,000 samples; frames,
spectrum, mel filters, logarithm and cosine transform are convolutions and products of the graph, so that every runtime
computes the same features. It is trained on 15 recordings of each of twelve words, which is few. Where Speech Commands
is absent, noise bursts are the samples, and the metric is how many of them a variant takes for the word PyTorch does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _data import SPEECH_CLASSES, Split, speech_commands
from _train import accuracy, classification, finish, fit, top1
from _zoo import Zoo, weights_file
from edgekit import AudioPreprocess, ModelSpec, TensorSpec, load_weights

RATE = 16000


class MFCC(nn.Module):
    """Sound (batch, samples) to mel-frequency cepstral coefficients (batch, 1, coefficients, frames).

    Frames of 40 ms each 20 ms, Hann window, mel filters from 20 to 4000 Hz (O'Shaughnessy's formula). The spectrum is
    scaled so that power stays within float16, from full scale down to the 0.01 that is added before the logarithm.
    """

    def __init__(self, filters: int = 40, coefficients: int = 16, frame: int = 640, hop: int = 320) -> None:
        super().__init__()
        self.hop = hop
        top = 4000 * frame // RATE
        time, bins = torch.arange(frame, dtype=torch.float64), torch.arange(top, dtype=torch.float64)
        angle = 2 * torch.pi * bins[:, None] * time / frame
        window = torch.hann_window(frame, dtype=torch.float64) * (400 / frame)
        mel = torch.linspace(31.75, 2146.06, filters + 2, dtype=torch.float64)  # 20 and 4000 Hz
        edges = 700 * (10 ** (mel / 2595) - 1)
        low, peak, high = (edges[i : i + filters, None] for i in range(3))
        hertz = bins * RATE / frame
        triangles = torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)
        order = torch.arange(coefficients, dtype=torch.float64)[:, None]
        cosines = torch.cos(torch.pi * order * (torch.arange(filters) + 0.5) / filters) * (2 / filters) ** 0.5
        for name, value in (
            ("waves", torch.cat([angle.cos(), angle.sin()])[:, None] * window),
            ("mel", triangles[:, :, None]),
            ("cosines", cosines[:, :, None]),
        ):
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        real, imaginary = F.conv1d(audio.unsqueeze(1), self.waves, stride=self.hop).chunk(2, dim=1)
        energy = F.conv1d(real * real + imaginary * imaginary, self.mel)
        return F.conv1d((energy + 0.01).log(), self.cosines).unsqueeze(1)


def separable(channels: int) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, and a 1x1 convolution over channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip


class DSCNN(nn.Module):
    """A second of sound (batch, 16000) in [-1, 1] to logits of twelve words."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.features = MFCC()
        self.norm = nn.BatchNorm2d(1)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (4, 10), 2, (1, 4), bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)
        )
        self.blocks = nn.Sequential(*(separable(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, len(SPEECH_CLASSES)))

    def forward(self, audio: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.norm(self.features(audio))))
        return self.head(x.mean(dim=(2, 3)))


def build() -> nn.Module:
    return load_weights(DSCNN(), weights_file(__file__))


@cache
def data() -> Split:
    """Recordings; the test part is heard at five places, 40 ms apart."""
    found = speech_commands()
    if found is None:
        return noise()
    places = [np.roll(found.test, 640 * k, axis=1) for k in range(-2, 3)]
    return found._replace(test=np.concatenate(places), test_labels=np.tile(found.test_labels, 5))


def noise() -> Split:
    """Bursts of noise, labelled by what the net takes them for."""
    random, start = np.random.default_rng(0), np.linspace(0, 2, 300)[:, None]
    envelope = np.exp(-40 * (np.linspace(0, 2, RATE) - start) ** 2)
    signals = (0.2 * random.standard_normal((300, RATE)) * envelope).astype(np.float32)
    with torch.inference_mode():
        labels = build()(torch.from_numpy(signals)).argmax(dim=1).numpy()
    return Split(signals[:150], labels[:150], signals[150:], labels[150:])


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    signals = data().train
    return {"audio": signals[np.random.default_rng(seed).permutation(len(signals))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = data()
    return {"top1": top1(run, split.test, split.test_labels, n, feed="audio")}


SPEC = ModelSpec(
    name="ds_cnn",
    description="Keyword spotting: DS-CNN on MFCC, twelve words",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("audio", "float32", ("batch", RATE)),),
    outputs=("logits",),
    labels=SPEECH_CLASSES,
    preprocess={"audio": AudioPreprocess(sample_rate=RATE, samples=RATE)},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 2.0, "fp16": 0.7},
)

ZOO = Zoo(group="audio, time series", title="DS-CNN on MFCC", data="Speech Commands (180 recordings)")


def heard(audio: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Recordings, each faster or slower, earlier or later, louder or softer, and over noise."""
    n = len(audio)
    speed = 0.88 + 0.24 * torch.rand(n, 1)
    shift = (torch.rand(n, 1) - 0.5) * 0.4
    place = torch.linspace(-1, 1, audio.shape[1]) * speed + shift
    grid = torch.stack([place, torch.zeros_like(place)], dim=2).unsqueeze(1).to(audio.device)
    moved = F.grid_sample(audio[:, None, None], grid, align_corners=False)[:, 0, 0]
    gain = 10 ** ((torch.rand(n, 1) - 0.5) * 0.8)
    hiss = torch.randn_like(moved) * 10 ** (-4 + 2.2 * torch.rand(n, 1)).to(audio.device)
    return moved * gain.to(audio.device) + hiss, labels


def train() -> nn.Module:
    split = speech_commands()
    if split is None:
        raise SystemExit("training needs Speech Commands: EDGEKIT_DATA names the folder that holds it")
    kept = np.arange(len(split.train)) % 15 >= 2  # two recordings of each word tell when to stop
    return fit(
        DSCNN,
        classification(0.1),
        (np.repeat(split.train[kept], 6, axis=0), np.repeat(split.train_labels[kept], 6)),
        epochs=24,
        batch=52,
        max_lr=0.01,
        weight_decay=0.05,
        augment=heard,
        validate=accuracy(split.train[~kept], split.train_labels[~kept]),
        patience=24,
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
