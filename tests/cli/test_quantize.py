from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.cli.main import main
from edgekit.package import Package
from tests.conftest import RECIPE
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return package_of(tmp_path / "net.edge", conv_net(), {"x": images(32)}, task="classification")


def test_the_table_names_what_was_tried_and_what_was_lost(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(package.path), "--max-drop", "20"]) == 0
    out = capsys.readouterr().out
    assert "minmax ranges" in out
    assert "top-1 agreement 100.00 ->" in out
    assert "calibrated on 32 of samples of net.edge" in out


def test_a_metric_that_is_no_share_is_printed_as_it_is(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, inputs = tmp_path / "net.py", [(s.name, s.dtype, s.shape) for s in package.manifest.input_specs]
    recipe.write_text(
        "import numpy as np\n"
        "from edgekit import ModelSpec, TensorSpec\n"
        f"inputs = tuple(TensorSpec(n, t, s) for n, t, s in {inputs})\n"
        "draw = lambda n, seed: {'x': np.load('real.npy')[:n]}\n"
        "SPEC = ModelSpec(name='net', build=lambda: None, inputs=inputs, samples=draw, higher_is_better=False,\n"
        "                 evaluate=lambda run, n: {'perplexity': 5.25 + 0 * len(run(draw(2, 0)))})\n".replace(
            "real.npy", str(tmp_path / "real.npy")
        )
    )
    np.save(tmp_path / "real.npy", images(16))
    assert main(["quantize", str(package.path), "--precision", "fp16", "--recipe", str(recipe)]) == 0
    assert "perplexity 5.2500 -> 5.2500 (+0.00 points lost" in capsys.readouterr().out


def test_json_is_one_document(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(package.path), "--precision", "fp16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["variant"] == "fp16"
    assert report["within_budget"] is True


def test_over_budget_is_exit_1_and_the_best_result_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(32)})
    assert main(["quantize", str(package.path), "--max-drop", "0", "--method", "minmax"]) == 1
    assert "over its budget" in capsys.readouterr().err
    assert Package.open(package.path).variant("int8").settings["over_budget"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "expected one of minmax"),
        (["--precision", "int2"], "Precision 'int2'"),
        (["--calib", "nowhere"], "does not exist"),
        (["--recipe", "nowhere.py"], "does not exist"),
        (["--samples", "-3"], "--samples -3"),
    ],
)
def test_misuse_is_one_sentence_and_exit_2(
    package: Package, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["quantize", str(package.path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("edgekit: ")
    assert "Traceback" not in err


def test_calibration_from_an_npz_file(package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "real.npz", x=images(12))
    assert main(["quantize", str(package.path), "--calib", str(tmp_path / "real.npz"), "--max-drop", "50"]) == 0
    assert "calibrated on 12 of real.npz" in capsys.readouterr().out


def test_the_demo_model_loses_at_most_0_3_points(
    digits: Package, edgekit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    args = ("quantize", digits.path, "--recipe", RECIPE, "--max-drop", "0.3", "--force", "--json")
    done = edgekit(*args)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["measure"] == "top1"
    assert report["drop"] <= 0.3
