"""An Elman RNN (1990: tanh of the input and of its own last state) reads a digit row by row.

`python models/rnn_classifier.py` trains it again.
"""

from __future__ import annotations

from torch import Tensor, nn

import _sequences
from _train import finish
from _zoo import Zoo, weights_file
from edgekit import load_weights


class RNNClassifier(nn.Module):
    """(batch, 1, rows, 16) in [-1, 1] to ten logits."""

    def __init__(self, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        self.rnn = nn.RNN(16, width, depth, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        _, last = self.rnn(_sequences.rows(image))
        return self.head(last[-1])


def build() -> nn.Module:
    return load_weights(RNNClassifier(), weights_file(__file__))


SPEC = _sequences.spec("rnn_classifier", "Elman RNN that reads a digit row by row", build)

ZOO = Zoo(group="recurrent", title="Elman RNN", data="scikit-learn's digits, row by row")


if __name__ == "__main__":
    finish(_sequences.train(RNNClassifier), SPEC, __file__)
