"""Optimisation profiles: the range of shapes that an engine accepts, from `--shapes` or from the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.errors import UsageError
from edgekit.tensors import TensorSpec, shape_text

BATCH = (1, 8, 32)
"""Smallest, tuned-for and largest batch of a profile that nobody asked for."""

_SHAPE = re.compile(r"\d+(x\d+)*")


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes of one input: the smallest, the one that the engine is tuned for, the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __str__(self) -> str:
        return "..".join("x".join(map(str, s)) for s in (self.min, self.opt, self.max))


Profile = dict[str, Range]
"""Input name -> its range."""


def parse_shapes(text: str) -> Profile:
    """One profile from "x:1x3x224x224..8x3x224x224..32x3x224x224", inputs separated by commas.

    One shape alone is all three; two are smallest and largest, tuned for the largest.

    Raises:
        UsageError: not of that form.
    """
    out: Profile = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, colon, shapes = part.rpartition(":")
        parts = shapes.split("..")
        if not colon or not name or len(parts) > 3 or not all(_SHAPE.fullmatch(p) for p in parts):
            raise UsageError(
                f"--shapes '{part}' is not understood; expected INPUT:MIN..OPT..MAX, for example "
                "x:1x3x224x224..8x3x224x224..32x3x224x224"
            )
        sizes = [tuple(map(int, p.split("x"))) for p in parts]
        if any(0 in s for s in sizes):
            raise UsageError(f"--shapes '{part}' holds a dimension of 0; sizes are 1 or more.")
        if name in out:
            raise UsageError(
                f"--shapes names '{name}' twice in one profile; give a second --shapes for a second profile."
            )
        out[name] = Range(min=sizes[0], opt=sizes[1] if len(sizes) == 3 else sizes[-1], max=sizes[-1])
    if not out:
        raise UsageError("--shapes is empty; expected INPUT:MIN..OPT..MAX.")
    return out


def profiles_for(
    inputs: Sequence[TensorSpec], asked: Sequence[Profile], samples: Mapping[str, Sequence[int]]
) -> tuple[Profile, ...]:
    """The checked profiles of a model: those asked for, completed, or one made from its free dimensions.

    A free batch becomes 1..8..32; another free dimension is fixed to what the package's samples have (`samples`:
    input -> shape). A model without free dimensions needs no profile and gets none.

    Raises:
        UsageError: a profile contradicts itself or the model, or a free dimension has no size to take.
    """
    if not any(isinstance(d, str) for s in inputs for d in s.shape):
        for profile in asked:
            _check(profile, inputs)
        return ()
    return tuple(_check(_completed(p, inputs, samples), inputs) for p in (asked or [{}]))


def _completed(profile: Profile, inputs: Sequence[TensorSpec], samples: Mapping[str, Sequence[int]]) -> Profile:
    sizes: dict[str, tuple[int, int, int]] = {}
    for spec in inputs:
        given = profile.get(spec.name)
        if given is not None and len(given.min) == len(given.opt) == len(given.max) == len(spec.shape):
            for i, dim in enumerate(spec.shape):
                if isinstance(dim, str):
                    sizes.setdefault(dim, (given.min[i], given.opt[i], given.max[i]))
    batch = inputs[0].shape[0] if inputs[0].batched else None
    if isinstance(batch, str):
        sizes.setdefault(batch, BATCH)
    for spec in inputs:
        shape = samples.get(spec.name, ())
        if len(shape) == len(spec.shape):
            for dim, size in zip(spec.shape, shape):
                if isinstance(dim, str):
                    sizes.setdefault(dim, (int(size),) * 3)
    out = dict(profile)
    for spec in inputs:
        if spec.name in out:
            continue
        missing = [d for d in spec.shape if isinstance(d, str) and d not in sizes]
        if missing:
            raise UsageError(
                f"Input '{spec.name}' {shape_text(spec.shape)} has no size for '{missing[0]}'. "
                f"Give one with: --shapes {spec.name}:{_example(spec)}"
            )
        rows = [tuple(d if isinstance(d, int) else sizes[d][k] for d in spec.shape) for k in range(3)]
        out[spec.name] = Range(min=rows[0], opt=rows[1], max=rows[2])
    return out


def _check(profile: Profile, inputs: Sequence[TensorSpec]) -> Profile:
    """`profile` in the order of the inputs. Raises UsageError."""
    known = {s.name: s for s in inputs}
    shared: dict[str, tuple[str, tuple[int, int, int]]] = {}
    for name, shapes in profile.items():
        if name not in known:
            raise UsageError(f"--shapes names '{name}', which is not an input; inputs are {', '.join(known)}.")
        spec = known[name]
        for row in (shapes.min, shapes.opt, shapes.max):
            if len(row) != len(spec.shape) or any(isinstance(d, int) and d != r for d, r in zip(spec.shape, row)):
                raise UsageError(
                    f"--shapes gives '{name}' {shape_text(row)}, but the model takes {shape_text(spec.shape)}. "
                    "Change only the named dimensions."
                )
        if not all(a <= b <= c for a, b, c in zip(shapes.min, shapes.opt, shapes.max)):
            raise UsageError(
                f"--shapes of '{name}' contradicts itself: {shapes} is not smallest..tuned..largest in every dimension."
            )
        for i, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                own = (shapes.min[i], shapes.opt[i], shapes.max[i])
                other, sizes = shared.setdefault(dim, (name, own))
                if sizes != own:
                    raise UsageError(
                        f"--shapes contradicts itself: '{dim}' is {_triple(sizes)} in '{other}' and {_triple(own)} in "
                        f"'{name}'; they must be equal."
                    )
    return {s.name: profile[s.name] for s in inputs if s.name in profile}


def _triple(sizes: tuple[int, int, int]) -> str:
    return "..".join(map(str, sizes))


def _example(spec: TensorSpec) -> str:
    low = "x".join(str(d) if isinstance(d, int) else "1" for d in spec.shape)
    high = "x".join(str(d) if isinstance(d, int) else "32" for d in spec.shape)
    return f"{low}..{low}..{high}"
