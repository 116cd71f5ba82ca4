"""What one model has done so far: counters in the terms of the protocol's statistics, and histograms for /metrics."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BOUNDS_S = (
    *(20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
"""Upper ends of the histograms' buckets, in seconds: from a model of a few weights to one that takes its time."""

_BOUNDS_NS = tuple(round(b * 1e9) for b in BOUNDS_S)


@dataclass(slots=True)
class Duration:
    """How often something happened, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns


class Histogram:
    """Counts of durations by `BOUNDS_S`; `counts` has one more entry, for what is longer than all of them."""

    __slots__ = ("counts", "ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_NS) + 1)
        self.ns = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.counts[bisect_left(_BOUNDS_NS, ns)] += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStats:
    """Runs of one number of rows: how many, and how long joining, running and splitting took in all."""

    runs: int = 0
    join_ns: int = 0
    run_ns: int = 0
    split_ns: int = 0


@dataclass(slots=True)
class Stats:
    """Counters of one model; changed on the server's thread only.

    `samples` counts rows of batches, `runs` calls of the model; `last_ms` is the time of the last request in
    milliseconds since 1970. `failures` are counted by their HTTP status; `cancelled` requests lost their client;
    `computed` ones were not answered from the cache.
    """

    samples: int = 0
    runs: int = 0
    last_ms: int = 0
    cancelled: int = 0
    computed: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    join: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)
    hit: Duration = field(default_factory=Duration)
    miss: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStats] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    request_times: Histogram = field(default_factory=Histogram)
    queue_times: Histogram = field(default_factory=Histogram)
    run_times: Histogram = field(default_factory=Histogram)

    def succeeded(
        self, rows: int, total_ns: int, queue_ns: int, run_ns: int, join_ns: int = 0, split_ns: int = 0
    ) -> None:
        """Count an answered request; its run is counted by `ran`."""
        # written out, not by `add`: this is on the way of every request
        self.samples += rows
        self.last_ms = time.time_ns() // 1_000_000
        self.success.count += 1
        self.success.ns += total_ns
        self.queue.ns += queue_ns
        self.run.ns += run_ns
        self.join.ns += join_ns
        self.split.ns += split_ns
        self.computed += 1
        times = self.request_times
        times.counts[bisect_left(_BOUNDS_NS, total_ns)] += 1
        times.ns += total_ns
        times = self.queue_times
        times.counts[bisect_left(_BOUNDS_NS, queue_ns)] += 1
        times.ns += queue_ns

    def ran(self, rows: int, run_ns: int, join_ns: int = 0, split_ns: int = 0) -> None:
        """Count one run of the model, which may have answered several requests."""
        self.runs += 1
        times = self.run_times
        times.counts[bisect_left(_BOUNDS_NS, run_ns)] += 1
        times.ns += run_ns
        entry = self.batches.get(rows)
        if entry is None:
            entry = self.batches[rows] = BatchStats()
        entry.runs += 1
        entry.join_ns += join_ns
        entry.run_ns += run_ns
        entry.split_ns += split_ns

    def ran_alone(self, rows: int, run_ns: int) -> None:
        """Count a request that was little else than a run of its own: `ran` and `succeeded` together."""
        self.samples += rows
        self.runs += 1
        self.computed += 1
        self.last_ms = time.time_ns() // 1_000_000
        self.success.count += 1
        self.success.ns += run_ns
        self.run.ns += run_ns
        self.queue_times.counts[0] += 1
        bucket = bisect_left(_BOUNDS_NS, run_ns)
        for times in (self.request_times, self.run_times):
            times.counts[bucket] += 1
            times.ns += run_ns
        entry = self.batches.get(rows)
        if entry is None:
            entry = self.batches[rows] = BatchStats()
        entry.runs += 1
        entry.run_ns += run_ns

    def ran_together(self, rows: int, waits_ns: Sequence[int], join_ns: int, run_ns: int, split_ns: int) -> None:
        """Count requests of `rows` rows each that one run answered, by how long each waited for it."""
        count, whole_ns = len(waits_ns), join_ns + run_ns + split_ns
        self.ran(rows * count, run_ns, join_ns, split_ns)
        waited_ns = sum(waits_ns)
        self.samples += rows * count
        self.computed += count
        self.last_ms = time.time_ns() // 1_000_000
        self.success.count += count
        self.success.ns += waited_ns + whole_ns * count
        self.queue.ns += waited_ns
        self.run.ns += run_ns * count
        self.join.ns += join_ns * count
        self.split.ns += split_ns * count
        queued, asked = self.queue_times, self.request_times
        queued.ns += waited_ns
        asked.ns += waited_ns + whole_ns * count
        for wait_ns in waits_ns:
            queued.counts[bisect_left(_BOUNDS_NS, wait_ns)] += 1
            asked.counts[bisect_left(_BOUNDS_NS, wait_ns + whole_ns)] += 1

    def from_cache(self, *, rows: int, total_ns: int, lookup_ns: int) -> None:
        """Count a request that was answered without a run."""
        self.samples += rows
        self.last_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.hit.add(lookup_ns)
        self.request_times.add(total_ns)

    def failed(self, total_ns: int, status: int = 500) -> None:
        """Count a request that was answered with an error."""
        self.last_ms = time.time_ns() // 1_000_000
        self.fail.add(total_ns)
        self.failures[status] = self.failures.get(status, 0) + 1

    def document(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`. A run's whole time counts for each request that it answered."""

        def entry(count: int, ns: int) -> dict[str, int]:
            return {"count": count, "ns": ns}

        spent = self.queue.ns + self.join.ns + self.run.ns + self.hit.ns
        rest_ns = max(self.split.ns, self.success.ns - spent)  # with what the protocol's side of an answer takes
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.samples,
            "execution_count": self.runs,
            "inference_stats": {
                "success": entry(self.success.count, self.success.ns),
                "fail": entry(self.fail.count, self.fail.ns),
                "queue": entry(self.computed, self.queue.ns),
                "compute_input": entry(self.computed, self.join.ns),
                "compute_infer": entry(self.computed, self.run.ns),
                "compute_output": entry(self.computed, rest_ns),
                "cache_hit": entry(self.hit.count, self.hit.ns),
                "cache_miss": entry(self.miss.count, self.miss.ns),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": entry(b.runs, b.join_ns),
                    "compute_infer": entry(b.runs, b.run_ns),
                    "compute_output": entry(b.runs, b.split_ns),
                }
                for rows, b in sorted(self.batches.items())
            ],
        }
