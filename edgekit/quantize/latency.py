"""Does INT8 pay on this machine? Two models timed in turns, so that what disturbs one disturbs the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quantize.calibrate import model_session
from edgekit.quantize.data import CalibrationData

if TYPE_CHECKING:
    import onnx

_BUDGET_S = 0.7
_FEWEST, _MOST = 7, 200
FASTER = 1.02
"""Speed-up that counts as faster: less is noise."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Median latency of one call, in milliseconds, of the float model and the other, on `threads` threads."""

    float_ms: float
    other_ms: float
    threads: int

    @property
    def speed_up(self) -> float:
        """How many times faster the other is."""
        return self.float_ms / self.other_ms


def timed(reference: onnx.ModelProto, other: onnx.ModelProto, data: CalibrationData, *, rows: int = 1) -> Timing:
    """Time both models on `rows` real samples a call, alternately, for about a second."""
    feed = next(data.batches(rows))
    with model_session(reference) as first, model_session(other) as second:
        times: tuple[list[float], list[float]] = ([], [])
        sessions = (first, second)
        for session in sessions:
            for _ in range(2):
                session.run(feed)
        end = time.perf_counter() + _BUDGET_S
        while len(times[0]) < _FEWEST or (time.perf_counter() < end and len(times[0]) < _MOST):
            for session, seen in zip(sessions, times):
                start = time.perf_counter()
                session.run(feed)
                seen.append(time.perf_counter() - start)
        return Timing(1e3 * float(np.median(times[0])), 1e3 * float(np.median(times[1])), first.threads)
