"""What an operator's cases are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugins_trt.operator import Call, Cost, Operator


@dataclass(frozen=True)
class Way:
    """One way to the result, as a function without arguments; `graph`: timed as one captured CUDA graph."""

    run: Callable[[], Any]
    graph: bool


Kernel = Callable[..., tuple[Any, ...]]
"""Runs our kernel on torch tensors, on torch's current stream; it returns the outputs, each time the same tensors."""


def alone(torch: Any, kernel: Kernel, tensors: Sequence[Any]) -> Callable[[], Any]:
    """The kernel and nothing around it."""
    return lambda: kernel(*tensors)


@dataclass(frozen=True)
class Case:
    """One call of one operator, with what it is held against.

    `ours(torch, kernel, tensors)` makes the function that is timed for us, `rivals(torch, tensors)` the other ways, by
    name; `tensors` are `operator.sample(call)` on the GPU. `extra` is the cost of what `ours` does beside the kernel.
    `asked` names a rival and how many times as fast we should be at least; `asked_share` is a share of the limit,
    `asked_s` a time.
    """

    operator: Operator
    label: str
    call: Call
    rivals: Callable[[Any, Sequence[Any]], Mapping[str, Way]]
    ours: Callable[[Any, Kernel, Sequence[Any]], Callable[[], Any]] = alone
    extra: Cost = field(default_factory=lambda: Cost(0, 0, 0))
    asked: tuple[str, float] | None = None
    asked_share: float | None = None
    asked_s: float | None = None

    @property
    def cost(self) -> Cost:
        """Of everything that is timed: the call, and `extra`."""
        own = self.operator.cost(self.call)
        read, written = own.bytes_read + self.extra.bytes_read, own.bytes_written + self.extra.bytes_written
        return Cost(read, written, own.flops + self.extra.flops)
