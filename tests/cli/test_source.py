"""Packages that commands read by URL."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.package import Package

pytest.importorskip("fsspec", reason="needs fsspec")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_commands_read_a_package_by_its_url(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    url = f"file://{tiny.path}"
    done = edgekit("inspect", url, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"fetched {url}\n"
    assert json.loads(done.stdout)["manifest"]["name"] == "tiny"
    for command in (("verify", url, "--json"), ("run", url, tiny.path / "samples.npz", "--json")):
        done = edgekit(*command)
        assert done.returncode == 0, done.stderr
        assert "fetched" not in done.stderr
        assert json.loads(done.stdout)
    assert not (tiny.path / "reports").exists()


def test_a_url_of_something_else_is_a_sentence(tiny: Package, edgekit: Run) -> None:
    for url, code, words in (
        (f"file://{tiny.path.parent}", 2, f"names no package; expected file://{tiny.path.parent}/NAME.edge"),
        (f"file://{tiny.path.parent}/no.edge", 1, "no.edge/manifest.json' is not there (any more)."),
        ("foo://bucket/x.edge", 2, "Protocol not known: foo"),
    ):
        done = edgekit("inspect", url)
        assert (done.returncode, done.stdout) == (code, "")
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
