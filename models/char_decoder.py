"""A Transformer decoder that writes text, with its keys and values cached between calls as states of the graph.

The cache is a window: the last 96 positions, in tensors of one size, so that any runtime can keep them in place.
Positions are told by distance alone (Press et al., "Train Short, Test Long", 2022: ALiBi), so the window may move on
for ever. One character after the other, or a whole text at once, gives the same answer.

    edgekit export models/char_decoder.py -o char_decoder.edge
    python models/char_decoder.py --package char_decoder.edge --prompt "Return the "
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import _language
from _data import CHARACTERS
from _train import fit
from _transformer import Block
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

WIDTH, DEPTH, HEADS, WINDOW = 96, 2, 4, 96
CACHE = tuple(f"{what}_{layer}" for layer in range(DEPTH) for what in ("key", "value"))


class CharDecoder(nn.Module):
    """Characters (batch, time), how much of the window is filled, and the cache, to logits and the cache after.

    `filled` (batch,) is 0 at the start. A key or value in the cache is (batch, heads, window, width / heads); the
    newest is last.
    """

    def __init__(self, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS, window: int = WINDOW) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.embedding = nn.Embedding(len(CHARACTERS), width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARACTERS))
        self.register_buffer("slope", 2.0 ** (-8 * torch.arange(1, heads + 1) / heads), persistent=False)

    def forward(self, token: Tensor, filled: Tensor | None = None, *cache: Tensor) -> tuple[Tensor, ...]:
        batch, time = token.shape
        if filled is None:
            filled = token.new_zeros(batch)
        x = self.embedding(token)
        if not cache:
            empty = x.new_zeros(batch, self.heads, self.window, x.shape[2] // self.heads)
            cache = (empty,) * (2 * len(self.blocks))
        bias = self.bias(time, filled)
        after: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x, key, value = block(x, bias, (cache[2 * i], cache[2 * i + 1]))
            after += [key[:, :, -self.window :], value[:, :, -self.window :]]
        return (self.head(self.norm(x)), (filled + time).clamp(max=self.window), *after)

    def bias(self, time: int, filled: Tensor) -> Tensor:
        """What is added to the scores (batch, heads, time, window + time): less for what is further back."""
        query = torch.arange(time, device=filled.device)[:, None] + self.window
        key = torch.arange(self.window + time, device=filled.device)[None]
        distance = query - key
        seen = (distance >= 0) & (distance < self.window) & (key >= self.window - filled[:, None, None])
        bias = -self.slope[:, None, None] * distance.to(self.slope.dtype)
        return bias.masked_fill(~seen[:, None], -1e4)


def build() -> nn.Module:
    return load_weights(CharDecoder(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return _language.samples(build, SPEC, n, seed)


def evaluate(run, n: int) -> dict[str, float]:
    return _language.perplexity(run, SPEC, n)


SPEC = ModelSpec(
    name="char_decoder",
    description="Character Transformer that writes like Python's documentation, with a KV cache",
    license="Apache-2.0",
    task="text-generation",
    build=build,
    inputs=(
        TensorSpec("token", "int64", ("batch", "time")),
        TensorSpec("filled", "int64", ("batch",)),
        *(TensorSpec(name, "float32", ("batch", HEADS, WINDOW, WIDTH // HEADS)) for name in CACHE),
    ),
    outputs=("logits", "filled_next", *(f"{name}_next" for name in CACHE)),
    states={name: f"{name}_next" for name in ("filled", *CACHE)},
    samples=samples,
    evaluate=evaluate,
    higher_is_better=False,
    tolerance={"int8": 5.0, "fp16": 1.0},
)

ZOO = Zoo(
    group="attention",
    title="Decoder with KV cache",
    data="Python's documentation",
    arguments={"compile": ("--shapes", "token:1x1..1x1..8x64")},  # a prompt at once, then one after the other
)


def train() -> nn.Module:
    return fit(
        CharDecoder,
        _language.next_character,
        (_language.blocks(8192, 96),),
        epochs=4,
        batch=32,
        max_lr=0.004,
        validate=_language.held_out(96),
    )


if __name__ == "__main__":
    _language.main(SPEC, __file__, train)
