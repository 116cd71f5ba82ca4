from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit._lazy import available
from edgekit.cli.main import main
from edgekit.package import Package
from edgekit.quantize.fp16 import half_model
from tests.data import ROOT
from tests.engine.conftest import add_variant
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of
from tests.tiny import tiny_package


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(8)})
    return add_variant(package, "fp16", half_model(conv_net()))


@pytest.fixture
def rtx() -> None:
    if not available("tensorrt_rtx_bindings"):
        pytest.skip("needs TensorRT-RTX: pip install 'edgekit[rtx]'")


def test_compile_tells_what_it_built_and_the_second_time_what_was_there(
    rtx: None, net: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(net.path), "--target", "rtx-4090", "sm_120"]) == 0
    first = capsys.readouterr()
    assert "TensorRT-RTX" in first.out
    assert first.out.count(" built ") >= 2
    assert "edgekit inspect" in first.out
    assert "fp16-sm89-rtx" in first.err  # progress
    assert main(["compile", str(net.path), "--target", "rtx-4090", "sm_120"]) == 0
    assert capsys.readouterr().out.count("already there") == 2


def test_json_is_one_document(rtx: None, net: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(net.path), "--target", "sm_86", "--shapes", "x:1x3x12x12..4x3x12x12", "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["sm"] == 86
    assert engine["reused"] == ""
    assert engine["summary"]["layers"] > 0


def test_inspect_shows_an_engine(rtx: None, net: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(net.path), "--target", "sm_86"]) == 0
    engine = next(v.id for v in Package.open(net.path).manifest.variants if v.format != "onnx")
    capsys.readouterr()
    assert main(["inspect", str(net.path), "--variant", engine, "--layers"]) == 0
    out = capsys.readouterr().out
    assert f"engine of {engine}: from 'fp16', tensorrt-rtx" in out
    assert "profile 0: x 1x3x12x12 .. 8x3x12x12 .. 32x3x12x12" in out
    assert "layers that compute" in out
    assert "only change type or layout" in out
    assert "correlation" in out
    assert main(["inspect", str(net.path), "--variant", engine, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    file = net.path / Package.open(net.path).variant(engine).file
    assert main(["inspect", str(file)]) == 0
    assert f"engine of {engine}" in capsys.readouterr().out
    assert document["engine"]["summary"]["layers"] > 0
    assert document["engine"]["layers"] == []


def test_an_engine_outside_a_package_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lone.engine").write_bytes(b"engine")
    assert main(["inspect", str(tmp_path / "lone.engine")]) == 2
    assert "is not an engine of a package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "orin-xn"], "Did you mean 'orin-nx'?"),
        (["--target", "orin-nano"], "is built on such a device"),
        (["--target", "sm_86", "--level", "9"], "--level 9"),
        (["--target", "sm_86", "--workspace", "0"], "--workspace 0"),
        (["--target", "sm_86", "--dla", "-1"], "--dla -1"),
        (["--target", "sm_86", "--variant", "int2"], "has no variant 'int2'"),
        (["--target", "sm_86", "--shapes", "x:oops"], "--shapes 'x:oops'"),
        (["--target", "sm_86", "--shapes", "x:9x3x12x12..1x3x12x12"], "contradicts itself"),
        (["--target", "sm_86", "--module", "tensorflow"], "invalid choice"),
    ],
)
def test_misuse_is_one_sentence_and_exit_2(
    net: Package, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        code = main(["compile", str(net.path), *arguments])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("edgekit: ")
    assert "Traceback" not in err


def test_no_package_and_no_gpu(tmp_path: Path, net: Package, capsys: pytest.CaptureFixture[str]) -> None:
    from edgekit.gpu import this_gpu

    assert main(["compile"]) == 2
    assert "Which package?" in capsys.readouterr().err
    assert main(["compile", str(tmp_path / "none.edge")]) == 2
    assert "does not exist" in capsys.readouterr().err
    if this_gpu() is None:
        assert main(["compile", str(net.path)]) == 2
        assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_what_cannot_be_built_is_exit_1(rtx: None, net: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(net.path), "--target", "sm_75", "--variant", "fp32", "--json"]) == 1
    captured = capsys.readouterr()
    assert "no FP32 matrix products" in captured.err
    assert json.loads(captured.out)["exit_code"] == 1


def test_a_package_without_a_variant_for_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tiny_package(tmp_path / "tiny.edge")
    assert main(["compile", str(package.path), "--target", "sm_86"]) == 2
    assert "edgekit quantize tiny.edge --precision fp16" in capsys.readouterr().err


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--targets"]) == 0
    out = capsys.readouterr().out
    for name in ("orin-nano-super", "thor-t5000", "rtx-5090", "h200"):
        assert name in out
    assert main(["compile", "--targets", "--json"]) == 0
    assert {t["name"] for t in json.loads(capsys.readouterr().out)} > {"agx-orin", "b200"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_leaves_nothing(rtx: None, net: Package, number: signal.Signals) -> None:
    """Interrupted at a random moment, or killed outright: the package is the old one or the new one, whole."""
    command = [sys.executable, "-m", "edgekit", "compile", str(net.path), "--target", "sm_86", "sm_89", "sm_120"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        assert "fp16-sm86" in process.stderr.readline()  # the build has begun
        process.send_signal(number)
        rest = process.stderr.read()
        process.wait(60)
    package = Package.open(net.path)
    engines = [v for v in package.manifest.variants if v.format != "onnx"]
    assert len(engines) in (0, 3)
    if number != signal.SIGKILL and not engines:
        assert process.returncode == 130
        assert "interrupted; nothing half-done was left behind" in rest
        assert not list(net.path.parent.glob(".*staging*"))
    for variant in engines:
        package.file(variant.file)
    assert main(["compile", str(net.path), "--target", "sm_86"]) == 0  # and the next command sweeps what was staged
    assert not list(net.path.parent.glob(".*staging*"))


def test_help_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgekit", "compile", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--shapes" in done.stdout
    assert "tensorrt" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_plan_without_anything_to_build_with(net: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(net.path), "--plan", "--target", "orin-nano", "h200"]) == 0
    out = capsys.readouterr().out
    assert "orin-nano  6.2      TensorRT 10.3" in out
    assert "breaks" in out  # JetPack 5.1
    assert "--target this" in out
    assert main(["compile", str(net.path), "--plan"]) == 1  # every Jetson: no release does it on Xavier
    assert "Does not work: xavier-nx (fp16), agx-xavier (fp16)." in capsys.readouterr().out
    assert main(["compile", str(net.path), "--plan", "--target", "orin-nano", "--jetpack", "6.0", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["breaks"] == ["orin-nano (fp16)"]
    assert {o["how"] for o in document["outlooks"][0]["operators"]} == {"native"}
    assert Package.open(net.path).manifest == net.manifest
