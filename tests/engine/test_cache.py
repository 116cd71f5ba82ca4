from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.engine import cache
from edgekit.engine.inspect import EngineLayers

NOTHING = EngineLayers(layers=(), intended={})


def test_an_engine_comes_back_with_its_facts() -> None:
    assert cache.cached_engine("a" * 64) is None
    cache.keep_engine("a" * 64, b"engine", build_s=1.5, found=NOTHING)
    data, facts = cache.cached_engine("a" * 64) or (b"", None)
    assert data == b"engine"
    assert facts is not None
    assert facts.build_s == 1.5


@pytest.mark.parametrize("damage", [b"", b"enginf", b"engine "])
def test_a_damaged_entry_is_not_used(damage: bytes) -> None:
    cache.keep_engine("a" * 64, b"engine", build_s=1, found=NOTHING)
    (cache.cache_folder() / "engines" / f"{'a' * 64}.engine").write_bytes(damage)
    assert cache.cached_engine("a" * 64) is None


def test_a_damaged_description_is_not_used() -> None:
    cache.keep_engine("a" * 64, b"engine", build_s=1, found=NOTHING)
    (cache.cache_folder() / "engines" / f"{'a' * 64}.json").write_bytes(b"{")
    assert cache.cached_engine("a" * 64) is None


def test_the_engines_unused_for_longest_make_room() -> None:
    folder = cache.cache_folder() / "engines"
    for i, name in enumerate("abc"):
        cache.keep_engine(name, b"", build_s=1, found=NOTHING)
        os.truncate(folder / f"{name}.engine", cache.LARGEST // 2)  # sparse: takes no room
        os.utime(folder / f"{name}.engine", (1000 + i, 1000 + i))
    cache.keep_engine("d", b"new", build_s=1, found=NOTHING)
    left = {p.stem for p in folder.glob("*.engine")}
    assert "d" in left
    assert "a" not in left
    assert {p.stem for p in folder.glob("*.json")} == left


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    cache.keep_engine("a", b"engine", build_s=1, found=NOTHING)
    cache.keep_timing_cache("rtx1.7-sm86-", b"times")
    assert cache.cached_engine("a") is None
    assert cache.timing_cache("rtx1.7-sm86-") == b""


def test_timing_caches_are_kept_by_key() -> None:
    cache.keep_timing_cache("trt10.3-sm87-orin", b"times")
    assert cache.timing_cache("trt10.3-sm87-orin") == b"times"
    assert cache.timing_cache("trt10.13-sm87-orin") == b""


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == Path(os.environ["EDGEKIT_CACHE"])
    monkeypatch.delenv("EDGEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "edgekit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "edgekit"
