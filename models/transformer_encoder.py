"""A Transformer encoder (PyTorch's own) tells of which topic a passage of documentation is.

Words are numbered by a hash (Weinberger et al., "Feature Hashing", 2009), so there is no vocabulary to keep; passages
are padded with 0 to one length, and padding is masked. Positions are sines (Vaswani et al., 2017).
"""

from __future__ import annotations

import re
from functools import cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from _data import Split, docstrings
from _train import accuracy, classification, finish, fit, top1
from _zoo import Zoo, weights_file
from edgekit import ModelSpec, TensorSpec, load_weights

TOPICS = {
    "graphics": ("turtle",),
    "testing": ("doctest", "unittest.case", "unittest.mock", "pdb"),
    "logging": ("logging", "logging.handlers"),
    "mathematics": ("decimal", "fractions", "numbers", "random", "statistics"),
    "mail": ("email.header", "email.message", "imaplib", "mailbox", "poplib", "smtplib"),
    "web": ("html.parser", "http.client", "http.cookiejar", "http.server", "urllib.parse", "urllib.request"),
    "files": ("fileinput", "glob", "os", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"),
    "addresses": ("ipaddress",),
    "typing": ("typing", "types", "abc", "dataclasses"),
    "concurrency": ("asyncio.base_events", "asyncio.streams", "asyncio.tasks", "queue", "subprocess", "threading"),
}
WORDS, LENGTH = 2048, 32


def numbers(passage: str) -> np.ndarray:
    """Words of a passage as int64 (LENGTH,): 1 to WORDS - 1 by their hash, 0 is padding; what is longer is cut."""
    found = [1 + crc32(w.encode()) % (WORDS - 1) for w in re.findall(r"[a-z_]+|\d", passage.lower())][:LENGTH]
    return np.pad(np.array(found, np.int64), (0, LENGTH - len(found)))


@cache
def data() -> Split:
    """Passages of up to LENGTH words of the modules' docstrings; every fifth docstring tests."""
    parts: tuple[list[tuple[str, int]], ...] = ([], [])
    for label, modules in enumerate(TOPICS.values()):
        for i, docstring in enumerate(d for m in modules for d in docstrings(m)):
            words = docstring.split()
            pieces = [" ".join(words[k : k + LENGTH]) for k in range(0, len(words), LENGTH)]
            parts[i % 5 == 4].extend((p, label) for p in pieces if len(p.split()) >= 6)
    (train, train_labels), (test, test_labels) = (zip(*part) for part in parts)
    order = np.random.default_rng(0).permutation(len(test))  # so that the first n are of all topics
    return Split(
        np.stack([numbers(p) for p in train]), np.array(train_labels),
        np.stack([numbers(p) for p in test])[order], np.array(test_labels)[order],
    )  # fmt: skip


class TopicEncoder(nn.Module):
    """Word numbers (batch, LENGTH), 0 is padding, to logits of the topics."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.2, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(TOPICS))
        rate = torch.exp(torch.arange(0, width, 2) * (-np.log(10000.0) / width))
        angle = torch.arange(LENGTH)[:, None] * rate
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], 2).flatten(1), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        padding = words == 0
        x = self.encoder(self.embedding(words) + 0.1 * self.positions, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).to(x.dtype)
        return self.head((x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1))


def build() -> nn.Module:
    return load_weights(TopicEncoder(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    words = data().train
    return {"words": words[np.random.default_rng(seed).permutation(len(words))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = data()
    return {"top1": top1(run, split.test, split.test_labels, n, feed="words")}


SPEC = ModelSpec(
    name="transformer_encoder",
    description="Transformer encoder that tells the topic of a passage of Python's documentation",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("words", "int64", ("batch", LENGTH)),),
    outputs=("logits",),
    labels=tuple(TOPICS),
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.8, "fp16": 0.3},
)

ZOO = Zoo(group="attention", title="Transformer encoder", data="Python's documentation")


def hidden_words(words: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fifth of the words as padding: the net must not lean on a single one."""
    return words * (torch.rand(words.shape) > 0.2), labels


def train() -> nn.Module:
    split = data()
    order = np.random.default_rng(1).permutation(len(split.train))
    words, labels = split.train[order], split.train_labels[order]
    return fit(
        TopicEncoder,
        classification(0.1),
        (words[300:], labels[300:]),
        epochs=25,
        max_lr=0.003,
        weight_decay=0.05,
        augment=hidden_words,
        validate=accuracy(words[:300], labels[:300]),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
