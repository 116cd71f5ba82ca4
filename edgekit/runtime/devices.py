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


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices of a list such as "cuda:0,cuda:1", each as `str(Place)`.

    Raises:
        UsageError: one of them is none, or the list is empty.
    """
    names = [part for part in (p.strip() for p in text.split(",")) if part]
    if not names:
        raise UsageError("Which device? Expected cpu, cuda:N, or several separated by commas: cuda:0,cuda:1")
    return tuple(str(parse_device(name)) for name in names)


def one_device(text: str | None, *, command: str) -> str | None:
    """The only device of `text`, for commands that use one. Raises UsageError if it names several."""
    if text is None:
        return None
    found = parse_devices(text)
    if len(found) > 1:
        raise UsageError(f"{command} uses one device at a time, and --device names {len(found)}. Name one.")
    return found[0]
