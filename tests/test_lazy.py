"""Optional packages: what is said of those that are missing, and what those that are there may not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit._lazy import EXTRA_OF, require
from edgekit.errors import MissingDependencyError
from edgekit.package import Package
from tests.data import ROOT


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError) as error:
        require("fsspec", why="read s3:// URLs")
    said = "fsspec is needed to read s3:// URLs and is not installed. Run: pip install 'edgekit[remote]'"
    assert str(error.value) == said


def test_every_extra_that_is_named_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in EXTRA_OF.values())


def test_onnx_runtime_reports_nothing_to_its_maker(tiny: Package, tmp_path: Path) -> None:
    """From 1.29 on it tells Microsoft of the models it runs, and keeps an identifier of the device for that."""
    pytest.importorskip("onnxruntime")
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    environment["HOME"] = str(tmp_path / "home")

    def left_by(*command: str) -> list[str]:
        (tmp_path / "home").mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [str(p.relative_to(tmp_path)) for p in (tmp_path / "home").rglob("*") if p.is_file()]

    samples = str(tiny.path / "samples.npz")
    assert left_by("-m", "edgekit", "run", str(tiny.path), samples) == []
    assert left_by("-m", "edgekit", "doctor", "--json") == []
