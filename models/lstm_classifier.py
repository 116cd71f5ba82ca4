"""An LSTM (Hochreiter and Schmidhuber, 1997) reads a digit row by row, two layers deep.

`python models/lstm_classifier.py` trains it again.
"""

from __future__ import annotations

from torch import Tensor, nn

import _sequences
from _train import finish
from _zoo import Zoo, weights_file
from edgekit import load_weights


class LSTMClassifier(nn.Module):
    """(batch, 1, rows, 16) in [-1, 1] to ten logits."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, width, depth, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        _, (last, _) = self.lstm(_sequences.rows(image))
        return self.head(last[-1])


def build() -> nn.Module:
    return load_weights(LSTMClassifier(), weights_file(__file__))


SPEC = _sequences.spec("lstm_classifier", "LSTM that reads a digit row by row", build)

ZOO = Zoo(group="recurrent", title="LSTM", data="scikit-learn's digits, row by row")


if __name__ == "__main__":
    finish(_sequences.train(LSTMClassifier), SPEC, __file__)
