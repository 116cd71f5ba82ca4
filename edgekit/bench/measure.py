"""Running and timing: warm-up until steady, and rounds in which the variants take turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit.bench.stats import steady_after
from edgekit.runtime.session import Session
from edgekit.tensors import Tensors

SETTLE_S = 0.01
"""Before each timed slice a variant runs this long untimed: threads of the one before stop spinning."""
FEWEST_ROUNDS, MOST_ROUNDS = 4, 12


@dataclass
class Contender:
    """One open variant with the feeds that it runs in turn."""

    variant: str
    session: Session
    feeds: Sequence[Tensors]
    _next: int = field(default=0, repr=False)

    def call(self) -> float:
        """Run the next feed and return the seconds it took."""
        feed = self.feeds[self._next % len(self.feeds)]
        self._next += 1
        start = time.perf_counter()
        self.session.run(feed)
        return time.perf_counter() - start

    def slice(self, seconds: float, *, at_least: int = 1) -> list[float]:
        """Latencies of calls over `seconds`, and of `at_least` calls."""
        out: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(out) < at_least or time.perf_counter() < deadline:
            out.append(self.call())
        return out


@dataclass(frozen=True)
class WarmUp:
    """How many calls the warm-up took, how long, and whether latencies were steady at its end."""

    calls: int
    duration_s: float
    steady: bool


def warm_up(contender: Contender, *, limit_s: float) -> WarmUp:
    """Run until latencies are steady, at most about `limit_s`."""
    values: list[float] = []
    start = time.perf_counter()
    step_s = limit_s / 8
    while True:
        values += contender.slice(step_s, at_least=3)
        duration_s = time.perf_counter() - start
        if steady_after(values) is not None:
            return WarmUp(len(values), duration_s, True)
        if duration_s >= limit_s:
            return WarmUp(len(values), duration_s, False)


def interleaved(
    contenders: Sequence[Contender], *, seconds: float, rounds: int | None = None
) -> list[list[list[float]]]:
    """`result[contender][round]` is a list of latencies, about `seconds` for each contender in all.

    `rounds` None: as many as the time allows, within 4 to 12.
    In each round all contenders run one after the other; every other round goes backwards, so that a machine that
    slows down over the run favours nobody.
    """
    slowest_s = max(c.call() for c in contenders)
    rounds = rounds or int(min(MOST_ROUNDS, max(FEWEST_ROUNDS, seconds / max(0.05, 3 * slowest_s))))
    result: list[list[list[float]]] = [[] for _ in contenders]
    for number in range(rounds):
        order = range(len(contenders))
        for i in order if number % 2 == 0 else reversed(order):
            if len(contenders) > 1:
                contenders[i].slice(min(SETTLE_S, seconds / rounds / 5))
            result[i].append(contenders[i].slice(seconds / rounds, at_least=2))
    return result
