"""Answers kept for requests that repeat."""

from __future__ import annotations

import numpy as np

from edgekit.serve.cache import ENTRY_BYTES, Cache, key_of

ONE = {"x": np.ones(4, np.float32)}


def test_keys_tell_names_types_shapes_and_values_apart() -> None:
    feeds = [
        ONE,
        {"y": ONE["x"]},
        {"x": ONE["x"].astype(np.float64)},
        {"x": ONE["x"].reshape(2, 2)},
        {"x": ONE["x"] * 2},
        {"x": ONE["x"], "y": ONE["x"]},
        {"x": np.array(["a", "bc"], object)},
        {"x": np.array(["ab", "c"], object)},
    ]
    assert len({key_of(f) for f in feeds}) == len(feeds)
    assert key_of({"a": ONE["x"], "b": ONE["x"]}) == key_of({"b": ONE["x"].copy(), "a": ONE["x"]})


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    cache = Cache(3 * (ENTRY_BYTES + 16))
    for i in range(3):
        cache.put(b"%d" % i, {"y": np.full(4, i, np.float32)})
    assert cache.get(b"0") is not None
    cache.put(b"3", {"y": np.full(4, 3, np.float32)})
    assert cache.bytes <= cache.max_bytes
    assert [cache.get(b"%d" % i) is None for i in range(4)] == [False, True, False, False]
    cache.put(b"large", {"y": np.zeros(10_000)})
    assert cache.get(b"large") is None
    assert len(cache) == 3
    cache.put(b"3", {"y": np.full(4, 7, np.float32)})
    kept = cache.get(b"3")
    assert kept is not None
    assert kept["y"][0] == 7
    assert cache.bytes == 3 * (ENTRY_BYTES + 16)


def test_a_view_does_not_keep_the_run_that_it_is_of() -> None:
    whole = np.zeros((100, 4), np.float32)
    cache = Cache(10_000)
    cache.put(b"k", {"y": whole[:1]})
    kept = cache.get(b"k")
    assert kept is not None
    assert not np.shares_memory(kept["y"], whole)
