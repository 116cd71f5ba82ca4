"""What the character models share: text as streams of numbers, perplexity through any runner, and the sampling loop.

A runner takes `token` (batch, time), characters as int64, with the states before, and gives `logits` and the states
after. So the loop over characters is the caller's: `generate` is that loop, for PyTorch, ONNX Runtime and TensorRT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _data import CHARACTERS, characters, text
from _train import finish
from edgekit import ModelSpec

BLOCK = 64
"""Characters of a sample, and of a call when the perplexity is measured."""


@cache
def corpus(part: str) -> np.ndarray:
    """The "train" or "test" text as int64 characters."""
    return characters(getattr(text(), part))


def passages(n: int, seed: int, length: int, part: str = "train") -> np.ndarray:
    """`n` passages from anywhere in the text, int64 (n, length)."""
    numbers = corpus(part)
    starts = np.random.default_rng(seed).integers(0, len(numbers) - length, n)
    return numbers[starts[:, None] + np.arange(length)]


def samples(build: Callable[[], nn.Module], spec: ModelSpec, n: int, seed: int) -> dict[str, np.ndarray]:
    """Passages of the training text, with the states that the passages before them leave."""
    tokens = passages(n, seed, 2 * BLOCK)
    with torch.inference_mode():
        _, *after = build()(torch.from_numpy(tokens[:, :BLOCK]))
    return {"token": tokens[:, BLOCK:]} | {name: state.numpy() for name, state in zip(spec.states, after)}


def perplexity(run: Any, spec: ModelSpec, n: int, length: int = 512) -> dict[str, float]:
    """exp of the mean cross-entropy over up to `n` streams of the test text, read block by block with their states."""
    streams = passages(max(2, min(n, 48)), 1, length + 1, "test")
    feed, losses = spec.complete({"token": streams[:, :BLOCK]}), []
    for start in range(0, length, BLOCK):
        feed["token"] = streams[:, start : start + BLOCK]
        answer = run(feed)
        feed |= {state: answer[source] for state, source in spec.states.items()}
        logits = torch.from_numpy(np.asarray(answer["logits"], np.float32))
        target = torch.from_numpy(streams[:, start + 1 : start + BLOCK + 1])
        losses.append(float(F.cross_entropy(logits.transpose(1, 2), target)))
    return {"perplexity": float(np.exp(np.mean(losses)))}


def generate(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    spec: ModelSpec,
    prompt: str,
    *,
    length: int = 200,
    temperature: float = 0.7,
    seed: int = 0,
) -> str:
    """`prompt` and `length` characters after it, each drawn by its probability; at temperature 0 the likeliest.

    The prompt goes in at once, then one character a call: outputs that are states are the next call's inputs.
    """
    random = np.random.default_rng(seed)
    feed = spec.complete({"token": characters(prompt)[None]})
    out = prompt
    for _ in range(length):
        answer = run(feed)
        logits = np.asarray(answer["logits"], np.float64)[0, -1]
        if temperature:
            logits = logits / temperature + random.gumbel(size=logits.shape)  # the largest is a draw from the softmax
        number = int(logits.argmax())
        out += CHARACTERS[number]
        feed = {state: answer[source] for state, source in spec.states.items()} | {"token": np.array([[number]])}
    return out


def next_character(net: nn.Module, block: Tensor) -> Tensor:
    """The loss of a model whose first output is logits: each character of `block` (batch, time + 1) by those before."""
    return F.cross_entropy(net(block[:, :-1])[0].transpose(1, 2), block[:, 1:])


def held_out(length: int) -> Callable[[nn.Module], float]:
    """A `validate` for `fit`: minus the loss on the last tenth of the training text."""
    numbers = corpus("train")
    numbers = numbers[len(numbers) * 9 // 10 :]
    blocks = torch.from_numpy(numbers[: len(numbers) // (length + 1) * (length + 1)].reshape(-1, length + 1))[:128]

    def validate(net: nn.Module) -> float:
        with torch.inference_mode():
            return -float(next_character(net, blocks.to(next(net.parameters()).device)))

    return validate


def blocks(count: int, length: int) -> np.ndarray:
    """`count` passages to train on, int64 (count, length + 1), from the first nine tenths of the training text."""
    numbers = corpus("train")
    starts = np.random.default_rng(0).integers(0, len(numbers) * 9 // 10 - length - 1, count)
    return numbers[starts[:, None] + np.arange(length + 1)]


def main(spec: ModelSpec, recipe: str, train: Callable[[], nn.Module]) -> None:
    """A recipe as a program: trains, or with --package writes text by the exported model."""
    parser = argparse.ArgumentParser(description=f"Train {spec.name}, or generate text.")
    parser.add_argument("--package", type=Path, help="generate with this package instead of training")
    parser.add_argument("--prompt", default="Return ")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    if args.package is None:
        finish(train(), spec, recipe)
        return
    import edgekit

    with edgekit.open_session(edgekit.Package.open(args.package)) as session:
        text = generate(session.run, spec, args.prompt, length=args.length, temperature=args.temperature)
    sys.stdout.write(text + "\n")
