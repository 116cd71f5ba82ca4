"""Which shapes an engine accepts, and which of its profiles serves a shape best. No GPU is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import InputError
from edgekit.tensors import shape_text

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of the inputs, in their order."""


@dataclass(frozen=True)
class Range:
    """Shapes of one input: smallest, the one that the profile is tuned for, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether `shape` lies in it."""
        return len(shape) == len(self.min) and all(a <= d <= b for a, d, b in zip(self.min, shape, self.max))

    def distance(self, shape: Sequence[int]) -> float:
        """How far `shape` is from the tuned one: the sum of the sizes' ratios, as logarithms."""
        return sum(abs(math.log(max(1, d) / max(1, o))) for d, o in zip(shape, self.opt))

    def __str__(self) -> str:
        return shape_text([str(a) if a == b else f"{a}..{b}" for a, b in zip(self.min, self.max)])


Profile = Mapping[str, Range]
"""Input -> its range; inputs of fixed shape may be left out."""


def choose_profile(profiles: Sequence[Profile], names: Sequence[str], shapes: Shapes, *, variant: str) -> int:
    """The number of the profile that holds `shapes` (of the inputs `names`) and is tuned for the nearest.

    Raises:
        InputError: none does; the message gives the accepted range.
    """
    given = dict(zip(names, shapes))
    able = [
        (sum(r.distance(given[n]) for n, r in profile.items() if n in given), index)
        for index, profile in enumerate(profiles)
        if all(r.holds(given[n]) for n, r in profile.items() if n in given)
    ]
    if able:
        return min(able)[1]
    for name, shape in given.items():
        ranges = list(dict.fromkeys(p[name] for p in profiles if name in p))
        if ranges and not any(r.holds(shape) for r in ranges):
            low = "x".join(map(str, shape))
            raise InputError(
                f"Input '{name}': got {shape_text(shape)}, engine '{variant}' accepts "
                f"{' or '.join(map(str, ranges))}. Send a shape in that range, or compile again with --shapes "
                f"{name}:{low}..{low}"
            )
    text = "; ".join(", ".join(f"{n} {r}" for n, r in p.items()) for p in profiles)
    raise InputError(
        f"No profile of engine '{variant}' accepts {', '.join(f'{n} {shape_text(s)}' for n, s in given.items())} "
        f"together; its profiles are: {text}. Send shapes of one profile, or compile again with --shapes."
    )
