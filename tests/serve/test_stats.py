"""Counters."""

from __future__ import annotations

from edgekit.serve.stats import BOUNDS_S, Stats


def test_one_run_of_several_requests_is_one_execution() -> None:
    stats = Stats()
    stats.ran(4, 1000, 200, 100)
    for rows in (1, 3):
        stats.succeeded(rows, 5000, 300, 1000, 200, 100)
    stats.ran(1, 500)
    stats.succeeded(1, 800, 0, 500)
    stats.failed(100, 503)
    stats.failed(100, 503)
    document = stats.document("net", "1")
    assert (document["inference_count"], document["execution_count"]) == (5, 2)
    assert [(b["batch_size"], b["compute_infer"]) for b in document["batch_stats"]] == [
        (1, {"count": 1, "ns": 500}),
        (4, {"count": 1, "ns": 1000}),
    ]
    parts = document["inference_stats"]
    assert parts["queue"] == {"count": 3, "ns": 600}
    assert parts["compute_infer"] == {"count": 3, "ns": 2500}
    assert parts["fail"] == {"count": 2, "ns": 200}
    assert stats.failures == {503: 2}
    times = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(parts[name]["ns"] for name in times) == parts["success"]["ns"] == 10_800


def test_answers_from_the_cache_are_not_computed() -> None:
    stats = Stats()
    stats.from_cache(rows=2, total_ns=50, lookup_ns=20)
    stats.miss.add(10)
    document = stats.document("net", "1")
    assert (document["inference_count"], document["execution_count"]) == (2, 0)
    parts = document["inference_stats"]
    assert (parts["cache_hit"], parts["cache_miss"]) == ({"count": 1, "ns": 20}, {"count": 1, "ns": 10})
    assert parts["compute_infer"] == {"count": 0, "ns": 0}


def test_histograms_count_by_their_upper_ends() -> None:
    stats = Stats()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.5, 1e9):
        stats.ran(1, round(seconds * 1e9))
    assert stats.run_times.counts[:2] == [2, 1]
    assert stats.run_times.counts[-1] == 1
    assert sum(stats.run_times.counts) == 4
