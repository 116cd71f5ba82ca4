"""What many tests share: small real packages, made once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from edgekit.gpu import this_gpu
from edgekit.package import Package
from tests.data import ROOT
from tests.tiny import tiny_package

# OpenMP's threads spin while they wait; on a machine with few cores that starves what they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A test run in the background may be started with Ctrl-C ignored, which commands would inherit; tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RECIPE = ROOT / "models" / "digits_cnn.py"


def required(mark: str) -> bool:
    """Whether EDGEKIT_REQUIRE names `mark` ("gpu"): tests that carry it must then run, and not be skipped."""
    return mark in os.environ.get("EDGEKIT_REQUIRE", "").split(",")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is marked gpu needs one."""
    if item.get_closest_marker("gpu") is not None and this_gpu() is None:
        pytest.skip("needs an NVIDIA GPU and its driver")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With EDGEKIT_REQUIRE=gpu a skip of a test that is marked gpu is a failure."""
    report = yield
    if report.skipped and item.get_closest_marker("gpu") is not None and required("gpu"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"EDGEKIT_REQUIRE=gpu, but this test did not run: {reason}"
    return report


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
