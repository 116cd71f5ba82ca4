"""`edgekit export` as a user types it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.cli.export import parse_input
from edgekit.cli.main import main
from edgekit.errors import EdgekitError, UsageError
from edgekit.package import Package
from edgekit.tensors import TensorSpec
from tests.data import ROOT
from tests.export.common import RECIPES, left_behind, model, recipe

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def abs_onnx(tmp_path: Path) -> Path:
    weights = {"w": np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    onnx.save(model(nodes, {"x": ("N", 64)}, {"y": ("N", 256)}, weights), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_bare_module_with_inputs_and_real_samples(edgekit: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32)
    np.savez(tmp_path / "images.npz", image=images)
    done = edgekit(
        "export", f"{RECIPES / 'residual.py'}:training_net", "-o", tmp_path / "n.edge",
        "--input", "image:float32:batch,3,16,16", "--samples", tmp_path / "images.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "parity with PyTorch" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["1", "3", "5"]
    assert "image: float32[batch, 3, 16, 16] -> output: float32[batch, 5]" in done.stdout
    steps = ["building training_net", "tracing the module", "translating it to ONNX", "comparing with the original"]
    assert done.stderr.splitlines() == [*steps, "writing the package"]  # and not a word of PyTorch's exporter
    package = Package.open(tmp_path / "n.edge")
    assert package.name == "training_net"
    np.testing.assert_array_equal(package.samples().inputs["image"], images)


def test_json_is_one_document_even_if_the_recipe_prints(
    tmp_path: Path, abs_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chatty.py").write_text(
        f"print('hello')\nfrom edgekit import ModelSpec, TensorSpec\n"
        f"SPEC = ModelSpec(name='net', build=lambda: print('building') or {str(abs_onnx)!r},\n"
        f"                 inputs=(TensorSpec('x', 'float32', ('batch', 64)),))\n"
    )
    assert main(["export", str(tmp_path / "chatty.py"), "-o", str(tmp_path / "net.edge"), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["package"] == str(tmp_path / "net.edge")
    assert document["manifest"]["provenance"]["parity"][0]["batch"] == 1
    assert "hello" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{onnx}", "-o", "{dir}/net"], 2, "is not a package name; expected NAME.edge"),
        (["{dir}/none.py", "-o", "{dir}/n.edge"], 2, "does not exist. Check the path."),
        (["{onnx}", "-o", "{dir}/n.edge", "--input", "x"], 2, "expected NAME:DTYPE:DIMS"),
        (["{onnx}", "-o", "{dir}/n.edge", "--tolerance", "-1"], 2, "expected a positive number"),
        (["{onnx}", "-o", "{dir}/n.edge", "--name", "a b"], 2, "Model name 'a b' is not usable"),
        (["{onnx}", "-o", "{dir}/n.edge", "--opset", "99"], 2, "--opset 99 is not usable; expected 18 to"),
        (["{onnx}", "-o", "{dir}/n.edge", "--samples", "{dir}/none.npz"], 2, "do not exist"),
        (["{onnx}", "-o", "{dir}/none/n.edge"], 1, "its folder does not exist"),
        (["{onnx}", "-o", "{onnx}/n.edge"], 1, "its parent is not a folder"),
        (["{recipe}", "-o", "{dir}/n.edge", "--dynamic-batch"], 2, "--dynamic-batch is for .onnx files"),
    ],
)
def test_misuse_is_one_sentence_and_the_right_code(
    arguments: list[str], code: int, says: str, tmp_path: Path, abs_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"dir": tmp_path, "onnx": abs_onnx, "recipe": recipe(tmp_path)}
    assert main(["export", *(a.format(**places) for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert says in err.splitlines()[-1]
    assert out == ""
    assert left_behind(tmp_path) == []


def test_existing_packages_are_kept_without_force(
    tmp_path: Path, abs_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "n.edge")
    assert main(["export", str(abs_onnx), "-o", target]) == 0
    before = Package.open(target).manifest
    assert main(["export", str(abs_onnx), "-o", target]) == 2
    assert "exists. Choose another name, or replace it with --force." in capsys.readouterr().err
    assert Package.open(target).manifest == before
    assert main(["export", str(abs_onnx), "-o", target, "--force", "--name", "other"]) == 0
    assert Package.open(target).name == "other"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("image:float32:batch,3,224,224", TensorSpec("image", "float32", ("batch", 3, 224, 224))),
        ("ids:int64:batch,time", TensorSpec("ids", "int64", ("batch", "time"))),
        ("gain:float32:", TensorSpec("gain", "float32", ())),
        ("serving:x:float16:1, 8", TensorSpec("serving:x", "float16", (1, 8))),
    ],
)
def test_inputs_are_read(text: str, spec: TensorSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize("text", ["x:float32", ":float32:1", "x:float32:1,,2", "x:float32:-1", "x:float32:0", "x:f:1"])
def test_inputs_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        parse_input(text)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, UsageError)


def test_a_full_disk_leaves_nothing(tmp_path: Path, abs_onnx: Path) -> None:
    """A limit on file size stands in for the full disk: the same error path, and no mount is needed."""
    command = [sys.executable, "-m", "edgekit", "export", str(abs_onnx), "-o", str(tmp_path / "n.edge")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731 - the model has 66 kB
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=100, cwd=ROOT)
    assert done.returncode == 1
    assert "was not written: a file would pass the size limit" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("step", ["building", "comparing"])
def test_ctrl_c_leaves_nothing_and_keeps_the_old_package(tmp_path: Path, abs_onnx: Path, step: str) -> None:
    target = tmp_path / "n.edge"
    assert main(["export", str(abs_onnx), "-o", str(target)]) == 0
    before = Package.open(target).manifest
    slow = "time.sleep(60)"
    (tmp_path / "slow.py").write_text(
        f"""
import time
import numpy as np
from edgekit import ModelSpec, TensorSpec
def build():
    {slow if step == "building" else "pass"}
    return {str(abs_onnx)!r}
def evaluate(run, n):
    {slow}
SPEC = ModelSpec(name="slow", build=build, inputs=(TensorSpec("x", "float32", ("batch", 64)),), evaluate=evaluate)
"""
    )
    command = [sys.executable, "-m", "edgekit", "export", str(tmp_path / "slow.py"), "-o", str(target), "--force"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    seen = ""
    while step not in seen:
        seen = process.stderr.readline()
        assert seen, "the export ended before it was interrupted"
    time.sleep(1.0 if step == "comparing" else 0.2)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "edgekit: interrupted; nothing half-done was left behind"
    assert out == ""
    assert left_behind(tmp_path) == ["n.edge"]
    assert Package.open(target).manifest == before
