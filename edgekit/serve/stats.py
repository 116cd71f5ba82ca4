"""What one model has done so far, counted in the terms of the protocol's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something happened, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class Stats:
    """Counters of one model; changed on the server's thread only.

    `samples` counts rows of batches, `runs` calls of the model; `last_ms` is the time of the last request in
    milliseconds since 1970.
    """

    samples: int = 0
    runs: int = 0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)

    def succeeded(self, *, rows: int, total_ns: int, queue_ns: int, run_ns: int) -> None:
        """Count an answered request."""
        self.samples += rows
        self.runs += 1
        self.last_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.run.add(run_ns)

    def failed(self, total_ns: int) -> None:
        """Count a request that was answered with an error."""
        self.last_ms = time.time_ns() // 1_000_000
        self.fail.add(total_ns)

    def document(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`."""

        def entry(duration: Duration) -> dict[str, int]:
            return {"count": duration.count, "ns": duration.ns}

        other = Duration(self.success.count, max(0, self.success.ns - self.queue.ns - self.run.ns))
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.samples,
            "execution_count": self.runs,
            "inference_stats": {
                "success": entry(self.success),
                "fail": entry(self.fail),
                "queue": entry(self.queue),
                "compute_input": entry(other),
                "compute_infer": entry(self.run),
                "compute_output": entry(Duration(self.success.count)),
                "cache_hit": entry(Duration()),
                "cache_miss": entry(Duration()),
            },
            "batch_stats": [],
        }
