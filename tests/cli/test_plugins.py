from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli.main import main
from edgekit.cli.plugins import TARGETS
from edgekit.targets import target_of
from tests.data import ROOT
from tests.plugins_trt.test_docs import follow


def test_every_operator_is_listed_with_its_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    assert "group_norm_silu: GroupNorm and SiLU\n  x, weight, bias -> y\n  groups (int, needed)" in out
    assert main(["plugins", "list", "--json"]) == 0
    listed = {op["name"]: op for op in json.loads(capsys.readouterr().out)}
    assert listed["layer_norm_residual_sum"]["outputs"] == ["y", "sum"]
    assert listed["layer_norm_residual"]["source"] == "layer_norm_residual.cu"
    assert len(listed["layer_norm_residual"]["sha256"]) == 64


def test_a_report_tells_the_kernel_the_gpu_and_the_roofline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "report", "group_norm_silu"]) == 0
    out = capsys.readouterr().out
    assert "group_norm_silu: float16[2, 320, 64, 64], float16[320], float16[320]" in out
    assert "moves 10.5 MB, computes 26.21 MFLOP: 2.50 FLOP/B" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith(TARGETS)}
    assert set(lines) == set(TARGETS)
    assert "none" in lines["orin-nx"]
    assert lines["orin-nx"].endswith("102.41 us"), "10.5 MB at 102.4 GB/s"
    assert max(map(len, lines.values())) <= 80


def test_one_target_with_every_variant_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plugins", "report", "layer_norm_residual", "--target", "agx-orin", "--target", "sm_89", "--tactics"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    kernels = document["kernels"]
    assert [(k["target"], k["tactic"]) for k in kernels] == [
        (t, n) for t in ("agx-orin", "sm_89") for n in (128, 256, 512)
    ]
    first = kernels[0]
    moved = first["bytes_read"] + first["bytes_written"]
    assert first["roofline_s"] == pytest.approx(moved / (target_of("agx-orin").bandwidth_gb_s * 1e9))
    assert first["flops_per_byte"] == pytest.approx(first["flops"] / moved)
    assert first["spill_store_bytes"] == 0
    assert 0 < first["occupancy"] <= 1
    assert kernels[-1]["roofline_s"] is None, "a bare compute capability has no data sheet"
    assert document["refused"] == []
    assert main(arguments) == 0
    assert "tactic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["group_norm"], "There is no operator 'group_norm'. Operators: "),
        (["group_norm_silu", "--target", "orin-nxx"], "Did you mean 'orin-nx'?"),
        (["group_norm_silu", "--target", "xavier-nx"], "sm_72 is older than the kernels support"),
    ],
)
def test_misuse_is_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "report", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_operator_of_another_package_is_listed_and_reported(tmp_path: Path) -> None:
    follow(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}

    def edgekit(*arguments: str) -> str:
        command = [sys.executable, "-m", "edgekit.cli.main", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "scaled_relu: ReLU of x times one scale a channel, channels last (from mypackage)" in edgekit(
        "plugins", "list"
    )
    (listed,) = json.loads(edgekit("plugins", "list", "scaled_relu", "--json"))
    assert (listed["package"], listed["source"]) == ("mypackage", "scaled_relu.cu")
    assert "orin-nx" in edgekit("plugins", "report", "scaled_relu", "--target", "orin-nx")
