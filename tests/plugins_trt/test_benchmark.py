"""The parts of benchmarks/plugins.py that need no GPU; the figures themselves need one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plugin_cases import lstm
from benchmarks.plugins import Figures, Limits, all_cases, error_of, table
from edgekit.gpu import this_gpu
from plugins_trt.operator import Cost
from plugins_trt.registry import operators
from scripts.gpu_plugins import check_plugins
from tests.data import ROOT

FIGURES = Figures(
    operator="lstm",
    label="batch 1, hidden 128, 100 steps",
    limit_s=1e-6,
    ours_s=40e-6,
    tactic=17,
    relative_error=4e-4,
    error_limit=1e-2,
    rivals_s={lstm.CUDNN: 100e-6, "torch.compile of it": None},
    reasons={"torch.compile of it": "no compiler here, and a sentence that is far too long for a terminal"},
    asked=(lstm.CUDNN, 2.0),
)


def benchmark(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.plugins", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_it_lists_what_it_would_measure() -> None:
    done = benchmark("lstm", "--list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(lstm.cases())
    assert "batch 1, hidden 128, 100 steps" in lines[1]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("args", "said"),
    [(["lstn"], "there are no cases of 'lstn'; there are cases of"), (["--seconds", "0"], "--seconds is 0")],
)
def test_misuse_is_told_in_a_sentence(args: list[str], said: str) -> None:
    done = benchmark(*args)
    assert done.returncode == 2
    assert said in done.stderr


def test_without_a_gpu_it_says_what_it_needs() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    done = benchmark()
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs an NVIDIA GPU" in done.stderr


def test_a_figure_is_held_against_what_was_asked_for() -> None:
    assert FIGURES.verdict()[0] is True
    assert replace(FIGURES, ours_s=51e-6).verdict()[0] is False
    assert replace(FIGURES, rivals_s={lstm.CUDNN: None}).verdict()[0] is None
    assert replace(FIGURES, asked=None).verdict()[0] is None
    share = replace(FIGURES, asked=None, asked_share=0.8, limit_s=32.1e-6)
    assert share.verdict() == (True, "80% of the limit; asked for 80%")
    assert replace(share, limit_s=31e-6).verdict()[0] is False
    met, words = replace(FIGURES, relative_error=float("inf")).verdict()
    assert met is False
    assert "the kernel is wrong" in words


def test_the_table_fits_a_terminal() -> None:
    lines = table([FIGURES]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["kernel,", "tactic", "17", "40.0", "us", "error", "4.0e-04"]
    assert lines[2].endswith("100.0 us  2.50 x ours")
    assert "no compiler here" in lines[3]
    assert lines[-1] == f"  met: 2.50 x {lstm.CUDNN}; asked for 2 x"


def test_the_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    limits = Limits(bytes_per_s=1e9, flops_per_s=1e12)
    assert limits.time_s(Cost(600, 400, 0)) == pytest.approx(1e-6)
    assert limits.time_s(Cost(0, 0, 5_000_000)) == pytest.approx(5e-6)


def test_the_error_is_relative_to_the_largest_value_and_nan_is_no_agreement() -> None:
    want = [np.array([4.0, -1.0]), np.zeros(2)]
    assert error_of([np.array([4.0, -0.8]), np.zeros(2)], want) == pytest.approx(0.05)
    assert error_of([np.array([4.0, np.nan]), np.zeros(2)], want) == float("inf")


def test_the_layer_is_counted_from_x_to_y() -> None:
    case = lstm.cases()[0]
    own = case.operator.cost(case.call)
    assert case.extra == lstm.input_cost(100, 1, 128, directions=1)
    assert case.extra.bytes_read == 2 * (100 * 128 + 512 * 128 + 512)
    assert case.extra.bytes_written == 2 * 100 * 512
    assert case.cost.flops == own.flops + 100 * 512 * (2 * 128 + 1)


def test_what_is_asked_of_lstm_is_measured() -> None:
    asked = {case.label: case.asked for case in all_cases(["lstm"]) if case.asked}
    assert asked == {
        "batch 1, hidden 128, 100 steps": (lstm.CUDNN, 2.0),
        "batch 64, hidden 128, 100 steps": (lstm.CUDNN, 1.0),
    }


def test_the_gpu_check_names_each_kernel_that_could_not_be_checked() -> None:
    if this_gpu() is not None:
        pytest.skip("needs a machine without a GPU")
    found = check_plugins(0.1)
    assert (found["ok"], found["figures"]) == (False, None)
    assert set(found["launches_that_agree"]) == set(operators())
    assert all("needs an NVIDIA GPU" in said for said in found["launches_that_agree"].values())


@pytest.mark.gpu
def test_figures_on_this_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a PyTorch built for CUDA")
    out = tmp_path / "figures.json"
    done = benchmark("lstm", "--seconds", "0.01", "--json", out)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(out.read_text())["figures"]
    assert len(figures) == len(lstm.cases())
    assert all(found["relative_error"] <= found["error_limit"] and found["ours_s"] > 0 for found in figures)
