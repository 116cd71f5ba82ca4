from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.inputs import Inputs
from edgekit.bench.loadgen import parse_summary, run_loadgen
from edgekit.cli.main import main
from edgekit.errors import BackendError, MissingDependencyError
from edgekit.package import Package
from edgekit.runtime.fake import FakeSession
from edgekit.tensors import Tensors, TensorSpec
from tests.tiny import INPUT


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> None:
    if "without_it" not in request.node.name:
        pytest.importorskip("mlperf_loadgen", reason="needs mlcommons-loadgen: pip install mlcommons-loadgen")


INPUTS = Inputs({"x": np.arange(80, dtype=np.float32).reshape(20, 4)}, (INPUT,), "20 rows", True)


def fake(work: object) -> FakeSession:
    return FakeSession([INPUT], [TensorSpec("y", "float32", ("batch",))], work)  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "server", "offline"])
def test_loadgen_itself_calls_the_run_valid(
    tiny: Package, scenario: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--variant", "int8", "--threads", "1", "--scenario", scenario, "--min-duration", "1.5"]
    arguments += ["--target-qps", "600", "--target-latency-ms", "2000"] if scenario == "server" else []
    assert main(["bench", str(tiny.path), *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["valid"] is True
    assert result["problems"] == []
    assert result["value"] > 0
    reports = tiny.path / "reports"
    assert "Result is : VALID" in (reports / f"{scenario}-mlperf_log_summary.txt").read_text()
    assert (reports / f"{scenario}-mlperf_log_detail.txt").stat().st_size > 1000
    assert json.loads((reports / f"{scenario}.json").read_text()) == result
    unit_is_seconds = scenario in ("single-stream", "multi-stream")
    assert ("percentile latency" in result["metric"]) == unit_is_seconds
    assert (result["value"] < 1) == unit_is_seconds
    assert list(tmp_path.glob("mlperf*")) == []


def test_an_invalid_run_is_exit_code_1_with_loadgens_reasons(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    """A microsecond is too little for the server scenario."""
    arguments = ["--scenario", "server", "--target-qps", "200", "--target-latency-ms", "0.001", "--min-duration", "0.5"]
    assert main(["bench", str(tiny.path), *arguments]) == 1
    out = capsys.readouterr().out
    assert "says: INVALID" in out
    assert "Performance constraints is not satisfied." in out


def test_rows_are_joined_and_every_one_is_of_the_samples(tmp_path: Path) -> None:
    sizes: set[int] = set()
    rows = {tuple(r) for r in INPUTS.arrays["x"]}

    def work(feed: Tensors) -> Tensors:
        sizes.add(len(feed["x"]))
        assert {tuple(r) for r in feed["x"]} <= rows
        time.sleep(0.002)
        return {"y": feed["x"].sum(axis=1)}

    result = run_loadgen(fake(work), INPUTS, scenario="offline", folder=tmp_path, min_duration_s=0.3, max_batch=8)
    assert max(sizes) == 8
    assert result.valid
    assert result.value > 1000  # 8 rows in a little more than 2 ms


def test_a_model_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    calls = 0

    def work(feed: Tensors) -> Tensors:
        nonlocal calls
        calls += 1
        if calls > 1200:
            raise BackendError("out of memory")
        return {"y": feed["x"].sum(axis=1)}

    with pytest.raises(BackendError, match="failed under LoadGen: out of memory"):
        run_loadgen(fake(work), INPUTS, scenario="single-stream", folder=tmp_path, min_duration_s=0.3)


def test_ctrl_c_is_heard_at_once_and_leaves_nothing(tiny: Package, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "bench", str(tiny.path), "--scenario", "single-stream"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stderr is not None
    assert "by LoadGen" in process.stderr.readline()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("edgekit-loadgen-*/mlperf_log_detail.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert list(tmp_path.glob("edgekit-loadgen-*")) == []
    assert not (tiny.path / "reports").exists()


def test_without_it_a_sentence_says_what_to_install(
    tiny: Package, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert main(["bench", str(tiny.path), "--scenario", "offline"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'edgekit[loadgen]'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "server"], "needs the queries a second"),
        (["--scenario", "offline", "--min-duration", "0"], "--min-duration must be positive"),
        (["--scenario", "offline", "--energy"], "a run of its own"),
        (["--scenario", "offline", "--variant", "fp32", "--variant", "int8"], "drives one variant"),
        (["--target-qps", "5"], "Add --scenario"),
    ],
)
def test_misuse_is_one_sentence(
    tiny: Package, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["bench", str(tiny.path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_a_summary_is_read_by_its_first_figures() -> None:
    text = """MLPerf Results Summary
Scenario : Server
Scheduled samples per second : 99.5
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
Recommendations:
 * Reduce target QPS to improve latency.
Scheduled samples per second : 1.0
"""
    figures, problems = parse_summary(text)
    assert figures["Scheduled samples per second"] == "99.5"
    assert problems == ("Performance constraints is not satisfied.", "Reduce target QPS to improve latency.")


@pytest.mark.parametrize(("machine", "compiles"), [("aarch64", True), ("x86_64", False)])
def test_without_it_a_jetson_is_told_what_pip_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, compiles: bool
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr("platform.machine", lambda: machine)
    session = fake(lambda feed: {"y": feed["x"][:, 0]})
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgekit\[loadgen\]'") as caught:
        run_loadgen(session, INPUTS, scenario="offline", folder=tmp_path)
    assert ("no wheel of it for aarch64" in str(caught.value)) == compiles
    assert ("apt install g++ python3-dev" in str(caught.value)) == compiles
