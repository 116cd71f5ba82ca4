"""Where a session runs, as users name it: "cpu", "cuda", "cuda:1"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Place:
    """The CPU, or GPU number `index` in CUDA's order."""

    kind: Literal["cpu", "cuda"]
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


CPU = Place("cpu")


def parse_device(text: str) -> Place:
    """The place that `text` names. "cuda" is "cuda:0".

    Raises:
        UsageError: it names none.
    """
    name = text.strip().lower()
    if name == "cpu":
        return CPU
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if found is None:
        raise UsageError(f"Device '{text}' is not known; expected cpu, cuda or cuda:N with N from 0.")
    return Place("cuda", int(found[1] or 0))
