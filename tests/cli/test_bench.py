from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgekit.bench import bench
from edgekit.cli.main import main
from edgekit.package import Package
from edgekit.telemetry import Found
from tests.telemetry import boards


def test_a_table_with_conditions_and_both_reports(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny.path), "--seconds", "0.05", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["variant", "p50", "ms"]
    assert [line.split()[0] for line in lines[1:3]] == ["fp32", "int8"]
    assert "1 thread" in out
    assert "energy" in out
    assert "bench.png" in err
    document = json.loads((tiny.path / "reports" / "bench.json").read_text())
    assert [v["id"] for v in document["variants"]] == ["fp32", "int8"]
    assert (tiny.path / "reports" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_document_on_stdout(tiny: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", str(tiny.path), "--json", "--quick", "--variant", "int8", "--no-plot", "--seconds", "0.05"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    (variant,) = document["variants"]
    assert variant["latency"]["p50_s"] > 0
    assert variant["energy"] or variant["energy_reason"]
    assert [p["batch"] for p in variant["sweep"]] == [1, 8, 32]
    assert not (tiny.path / "reports" / "bench.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent.edge"], 2, "does not exist"),
        (["{package}", "--variant", "int4"], 2, "it has fp32, int8"),
        (["{package}", "--threads", "0"], 2, "--threads must be 1 or more"),
        (["{package}", "--seconds", "-1"], 2, "--seconds must be positive"),
        (["{package}", "--size", "height"], 2, "expected NAME=N"),
        (["{package}", "--size", "height=9"], 2, "free dimensions are batch"),
        (["{package}", "--batch", "0"], 2, "1 or more"),
        (["{package}", "--trials", "0"], 2, "--trials must be 1 or more"),
        (["{package}", "--recipe", "tiny.py"], 2, "Add --energy"),
        (["{package}", "--energy", "--root", "absent"], 2, "is not a folder"),
        (["{package}", "--energy", "--metric-samples", "0"], 2, "1 or more"),
    ],
)
def test_misuse_is_one_sentence(
    tiny: Package, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(["bench", *(a.format(package=tiny.path) for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_without_matplotlib_the_rest_works_and_a_note_says_what_to_install(
    tiny: Package, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", str(tiny.path), "--seconds", "0.05", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert "fp32" in out
    assert "pip install 'edgekit[bench]'" in err
    assert (tiny.path / "reports" / "bench.json").exists()
    assert not (tiny.path / "reports" / "bench.png").exists()


def test_reports_that_cannot_be_written_do_not_lose_the_figures(
    tiny: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny.path / "reports").write_text("a file in the way")
    assert main(["bench", str(tiny.path), "--seconds", "0.05", "--quick", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["variants"]
    assert "was not written" in err


def test_interrupting_leaves_the_package_as_it_was(tiny: Package) -> None:
    before = sorted(os.listdir(tiny.path))
    command = [sys.executable, "-m", "edgekit", "bench", str(tiny.path), "--seconds", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("warm-up")
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert sorted(os.listdir(tiny.path)) == before


def quick_board(build: Callable[[Path], Path], root: Path) -> Path:
    """A built tree whose rails are renewed so often that short windows are enough."""
    build(root)
    for chip in root.glob("sys/class/hwmon/*/update_interval"):
        chip.write_text("5\n")
    return root


def test_energy_of_a_board_with_a_rail(digits: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A built tree of an Orin Nano: its rail stands still at 9.25 W."""
    root = quick_board(boards.orin_nano, tmp_path / "orin")
    arguments = ["--energy", "--root", str(root), "--seconds", "0.1", "--no-plot", "--variant", "int8", "--quick"]
    assert main(["bench", str(digits.path), *arguments, "--json"]) == 0
    (variant,) = json.loads(capsys.readouterr().out)["variants"]
    (energy,) = variant["energy"]
    assert (energy["source"], energy["scope"]) == ("rail", "module rail VDD_IN")
    assert energy["power_w"] == pytest.approx(9.25, abs=0.01)
    assert energy["idle_w"] == pytest.approx(9.25, abs=0.01)
    assert energy["joules_per_inference"] == pytest.approx(9.25 * energy["duration_s"] / energy["inferences"], rel=0.01)
    share = variant["correct"]["share"]
    assert 0.9 < share <= 1
    assert energy["joules_per_correct"] == pytest.approx(energy["joules_per_inference"] / share)
    assert energy["correct_uncertainty_j"] > energy["uncertainty_j"]
    assert len(energy["trials"]) == 5


def test_energy_without_a_sensor_is_null_with_a_sentence(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--energy", "--root", str(tmp_path), "--seconds", "0.05", "--no-plot", "--quick"]
    assert main(["bench", str(tiny.path), *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("energy not measured: RAPL: this machine shows no") == 1
    assert "mJ/inference" not in out, "a table of nothing but dashes"
    assert "correct prediction" not in out
    document = json.loads((tiny.path / "reports" / "bench.json").read_text())
    assert all(v["energy"] == [] and v["energy_reason"] for v in document["variants"])
    assert all(v["correct"] is None and "--recipe tiny.py" in v["correct_reason"] for v in document["variants"])


def baseline_of(tiny: Package, folder: Path, capsys: pytest.CaptureFixture[str], **factors: float) -> Path:
    """A baseline measured now, its trials multiplied: p50_s=0.5 makes the old one twice as fast."""
    assert main(["bench", str(tiny.path), "--quick", "--seconds", "0.2", "--trials", "6", "--no-plot", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for variant in document["variants"]:
        for trial in variant["trials"]:
            for name, factor in factors.items():
                trial[name] *= factor
    path = folder / "old.json"
    path.write_text(json.dumps(document))
    return path


GATE = ["--quick", "--seconds", "0.2", "--trials", "6", "--no-plot"]


def test_a_regression_is_exit_code_1_and_an_improvement_is_not(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = baseline_of(tiny, tmp_path, capsys, p50_s=0.1, samples_per_s=0.1)
    limits = "p50>+100%, throughput<-5%"
    assert main(["bench", str(tiny.path), *GATE, "--baseline", str(old), "--fail-if", limits]) == 1
    out = capsys.readouterr().out
    verdicts = [line.split()[-1] for line in out.splitlines() if "p50 ms " in line or "throughput 1/s" in line]
    assert verdicts[-4:] == ["worse", "ok", "worse", "ok"]
    assert "fp32 p50: worse by at least" in out
    report = json.loads((tiny.path / "reports" / "bench.json").read_text())
    assert report["baseline"] == "old.json"
    assert {c["verdict"] for c in report["comparisons"]} == {"worse", "ok"}
    assert main(["bench", str(tiny.path), *GATE, "--baseline", str(old), "--json"]) == 0  # without limits it only shows
    shown = json.loads(capsys.readouterr().out)["comparisons"]
    assert {c["metric"] for c in shown} == {"p50", "p90", "p99", "mean", "throughput"}
    assert {c["verdict"] for c in shown} == {"shown"}


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ({}, ["--fail-if", "speed>+5%"], "expected one of energy, p50"),
        ({}, ["--fail-if", "p50>5"], "expected METRIC>+N%"),
        ({}, ["--fail-if", "p50<-5%"], "expected p50>+5%"),
        ({}, ["--fail-if", "throughput>+5%"], "expected throughput<-5%"),
        ({}, ["--fail-if", "p50>+5%,p50>+6%"], "twice"),
        ({}, ["--fail-if", "energy>+5%"], "has no energy of 'fp32'"),
        ({}, ["--batch", "4"], "another batch (1; now 4)"),
        ({}, ["--threads", "7"], "another threads"),
        (
            {"machine": {"cpu": "Z80", "architecture": "z80", "cores": 1, "system": "CP/M"}},
            [],
            "(Z80, z80, 1 cores; now",
        ),
        ({"package": "other.edge"}, [], "another package (other.edge; now tiny.edge)"),
        ({"variants": []}, ["--variant", "int8"], "no variant 'int8'"),
        ({"machine": 3}, [], "is no report of edgekit bench"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused_before_measuring(
    tiny: Package,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    arguments: list[str],
    words: str,
) -> None:
    old = tmp_path / "old.json"
    old.write_bytes(msgspec.json.encode(bench(tiny, seconds=0.05, sweep=(1,), trials=5, sensors=Found())))
    old.write_text(json.dumps({**json.loads(old.read_text()), **change}))
    before = old.stat().st_mtime_ns
    assert main(["bench", str(tiny.path), "--no-plot", "--baseline", str(old), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert old.stat().st_mtime_ns == before


def test_a_run_never_replaces_its_own_baseline_and_one_without_trials_is_refused(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny.path / "reports" / "bench.json"
    assert main(["bench", str(tiny.path), "--quick", "--seconds", "0.05", "--no-plot", "--trials", "2"]) == 0
    assert main(["bench", str(tiny.path), "--baseline", str(own)]) == 2
    assert "Copy it elsewhere first" in capsys.readouterr().err
    copy = tmp_path / "old.json"
    copy.write_bytes(own.read_bytes())
    assert main(["bench", str(tiny.path), "--baseline", str(copy)]) == 2
    assert "has 2 trials of 'fp32', and an interval needs 5" in capsys.readouterr().err
    assert main(["bench", str(tiny.path), "--baseline", str(tmp_path / "absent.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["bench", str(tiny.path), "--fail-if", "p50>+5%"]) == 2
    assert "Add --baseline" in capsys.readouterr().err


def test_energy_is_gated_in_as_many_windows(
    digits: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = quick_board(boards.orin_nano, tmp_path / "orin")
    arguments = ["--root", str(root), "--quick", "--seconds", "0.1", "--no-plot", "--variant", "int8", "--trials", "5"]
    assert main(["bench", str(digits.path), *arguments, "--energy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for trial in document["variants"][0]["energy"][0]["trials"]:
        trial["joules_per_inference"] /= 20
        trial["uncertainty_j"] /= 20
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    assert main(["bench", str(digits.path), *arguments, "--baseline", str(old), "--fail-if", "energy>+5%"]) == 1
    assert "int8 energy: worse by at least" in capsys.readouterr().out
    arguments[1] = str(quick_board(boards.agx_orin, tmp_path / "agx"))
    assert main(["bench", str(digits.path), *arguments, "--baseline", str(old), "--fail-if", "energy>+5%"]) == 2
    assert "expected the same scope" in capsys.readouterr().err


def test_sustained_says_what_is_missing_and_draws(
    tiny: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sustained", "5s", "--variant", "int8"]
    assert main(["bench", str(tiny.path), *arguments, "--root", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "until the time was over" in out
    assert "No temperature can be read" in out
    assert "Nothing on this machine tells whether it is slowed down" in out
    assert "load by int8" in err
    report = json.loads((tiny.path / "reports" / "sustained.json").read_text())
    assert report["sustained_per_s"] > 0
    assert report["heating"] is None
    assert report["readings"][-1]["temp_c"] == {}
    assert (tiny.path / "reports" / "sustained.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sustained", "soon"], "expected a time"),
        (["--sustained", "1s"], "expected 5 seconds to 24 hours"),
        (["--sustained", "10m", "--variant", "fp32", "--variant", "int8"], "looks at one variant"),
        (["--sustained", "10m", "--energy"], "a run of its own"),
    ],
)
def test_misuse_of_sustained(
    tiny: Package, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["bench", str(tiny.path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_explains(edgekit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = edgekit("bench", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "take turns" in done.stdout
