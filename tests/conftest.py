"""What many tests share: small real packages, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.package import Package
from tests.data import ROOT
from tests.tiny import tiny_package

# OpenMP's threads spin while they wait; on a machine with few cores that starves what they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RECIPE = ROOT / "models" / "digits_cnn.py"


def edgekit_command(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`edgekit ARGS` in a process of its own."""
    command = [sys.executable, "-m", "edgekit", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=200)


@pytest.fixture(scope="session")
def edgekit() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line."""
    return edgekit_command


@pytest.fixture
def tiny(tmp_path: Path) -> Package:
    """A package of two variants around a model of a few weights; the test may change it."""
    return tiny_package(tmp_path / "tiny.edge")


@pytest.fixture(scope="session")
def _digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits_cnn exported and quantized through the command line, once a session."""
    path = tmp_path_factory.mktemp("digits") / "digits_cnn.edge"
    for args in (
        ("export", RECIPE, "-o", path),
        ("quantize", path, "--precision", "fp16", "--recipe", RECIPE),
        ("quantize", path, "--precision", "int8", "--recipe", RECIPE),
    ):
        done = edgekit_command(*args)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def digits(_digits: Path, tmp_path: Path) -> Package:
    """A copy of the exported and quantized digits_cnn; the test may change it."""
    return Package.open(shutil.copytree(_digits, tmp_path / "digits_cnn.edge"))
