"""A bidirectional LSTM reads a digit from the top and from the bottom; the mean over all rows decides.

`python models/bilstm_classifier.py` trains it again.
"""

from __future__ import annotations

from torch import Tensor, nn

import _sequences
from _train import finish
from _zoo import Zoo, weights_file
from edgekit import load_weights


class BiLSTMClassifier(nn.Module):
    """(batch, 1, rows, 16) in [-1, 1] to ten logits."""

    def __init__(self, width: int = 40, depth: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, width, depth, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        features, _ = self.lstm(_sequences.rows(image))
        return self.head(features.mean(dim=1))


def build() -> nn.Module:
    return load_weights(BiLSTMClassifier(), weights_file(__file__))


SPEC = _sequences.spec("bilstm_classifier", "Bidirectional LSTM that reads a digit row by row", build)

ZOO = Zoo(group="recurrent", title="Bidirectional LSTM", data="scikit-learn's digits, row by row")


if __name__ == "__main__":
    finish(_sequences.train(BiLSTMClassifier), SPEC, __file__)
