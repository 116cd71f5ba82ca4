"""An LSTM that writes text character by character: embedding, LSTM, and its state in and out of the graph.

It reads the documentation in the Python standard library. The sampling loop is the caller's, see `_language.generate`:

    edgekit export models/char_lstm.py -o char_lstm.edge
    python models/char_lstm.py --package char_lstm.edge --prompt "Return the "
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

import _language
from _data import CHARACTERS
from _train import fit
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

WIDTH, DEPTH = 128, 1


class CharLSTM(nn.Module):
    """Characters (batch, time) and the state before to logits (batch, time, 96) and the state after."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 48)
        self.lstm = nn.LSTM(48, width, depth, batch_first=True)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(
        self, token: Tensor, hidden: Tensor | None = None, cell: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = None if hidden is None or cell is None else (hidden, cell)
        features, (hidden, cell) = self.lstm(self.embedding(token), state)
        return self.head(features), hidden, cell


def build() -> nn.Module:
    return load_weights(CharLSTM(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    return _language.samples(build, SPEC, n, seed)


def evaluate(run, n: int) -> dict[str, float]:
    return _language.perplexity(run, SPEC, n)


SPEC = ModelSpec(
    name="char_lstm",
    description="Character LSTM that writes like Python's documentation",
    license="Apache-2.0",
    task="text-generation",
    build=build,
    inputs=(
        TensorSpec("token", "int64", ("batch", "time")),
        TensorSpec("hidden", "float32", (DEPTH, "batch", WIDTH)),
        TensorSpec("cell", "float32", (DEPTH, "batch", WIDTH)),
    ),
    outputs=("logits", "hidden_next", "cell_next"),
    states={"hidden": "hidden_next", "cell": "cell_next"},
    samples=samples,
    evaluate=evaluate,
    higher_is_better=False,
    tolerance={"int8": 5.0, "fp16": 1.0},
)

ZOO = Zoo(
    group="recurrent",
    title="Character LSTM",
    data="Python's documentation",
    arguments={"compile": ("--shapes", "token:1x1..1x1..8x64")},  # a prompt at once, then one after the other
)


def train() -> nn.Module:
    return fit(
        CharLSTM,
        _language.next_character,
        (_language.blocks(8192, 96),),
        epochs=4,
        batch=32,
        max_lr=0.01,
        validate=_language.held_out(96),
    )


if __name__ == "__main__":
    _language.main(SPEC, __file__, train)
