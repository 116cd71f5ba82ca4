"""Engines built on a device by TensorRT-RTX, and brought home whole or not at all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgekit._lazy import available
from edgekit.cli.main import main
from edgekit.deliver.compile_on import bring_home
from edgekit.deliver.ssh import Host
from edgekit.engine.apply import compile_package
from edgekit.errors import EdgekitError
from edgekit.manifest import Variant, encode
from edgekit.package import MANIFEST, Package
from edgekit.quantize.fp16 import half_model
from tests.deliver.device import Device
from tests.engine.conftest import add_variant
from tests.quantize.nets import conv_net, images
from tests.quantize.packages import package_of
from tests.stages import pair

PILOT = "pilot@orin"


@pytest.fixture
def net(tmp_path: Path) -> Package:
    return add_variant(package_of(tmp_path / "net.edge", conv_net(), {"x": images(8)}), "fp16", half_model(conv_net()))


@pytest.fixture
def rtx(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose edgekit has TensorRT-RTX."""
    if not available("tensorrt_rtx_bindings"):
        pytest.skip("needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    device.install_edgekit()
    monkeypatch.setenv("EDGEKIT_CACHE", str(device.home / "cache"))
    return device


def compile_there(package: Package, *more: str) -> int:
    return main(["compile", str(package.path), "--on", PILOT, "--target", "sm_86", *more])


def test_engines_come_home_into_the_package(net: Package, rtx: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_there(net, "--shapes", "x:1x3x12x12..4x3x12x12..4x3x12x12", "--json") == 0
    spoken = capsys.readouterr()
    (engine,) = json.loads(spoken.out)["engines"]
    assert "pilot@orin: fp16-sm86-rtx" in spoken.err  # progress of the build
    package = Package.open(net.path)
    variant = package.variant(engine["id"])
    assert package.model_file(variant).stat().st_size == engine["bytes"]
    assert variant.settings["source_sha256"] == package.variant("fp16").sha256
    assert main(["inspect", str(net.path), "--variant", engine["id"]]) == 0  # its layers came along
    assert not (rtx.home / ".cache" / "edgekit" / ".edgekit").exists()
    shapes = ["--target", "sm_86", "--shapes", "x:1x3x12x12..4x3x12x12..4x3x12x12"]
    with Package.open(net.path).edit() as writer:
        writer.remove(engine["id"])
        writer.commit()
    assert main(["compile", str(net.path), "--on", f"{PILOT}:models", *shapes]) == 0
    assert "from the cache" in capsys.readouterr().out
    assert Package.open(net.path).variant(engine["id"]).sha256 == variant.sha256


def test_stages_get_their_engines(tmp_path: Path, rtx: Device, capsys: pytest.CaptureFixture[str]) -> None:
    package = pair(tmp_path / "p")
    assert compile_there(package, "--variant", "fp32") == 0
    assert "encoder/fp32-sm86" in capsys.readouterr().out
    for _, own in Package.open(package.path).stages():
        (engine,) = [v for v in own.manifest.variants if v.format == "tensorrt-rtx"]
        own.model_file(engine)


def test_what_fails_there_changes_nothing_here(
    net: Package, rtx: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = net.manifest.digest
    rtx.cut_after(100, "fp32.onnx")
    assert compile_there(net) == 1
    assert "was lost after" in capsys.readouterr().err
    assert main(["compile", str(net.path), "--on", PILOT, "--target", "no-such-gpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("edgekit: pilot@orin did not compile: ")
    assert "no-such-gpu" in error
    assert compile_there(net, "--remote-edgekit", "/none/edgekit") == 2
    assert "has no edgekit at '/none/edgekit'" in capsys.readouterr().err
    rtx.set("PATH", "/usr/bin:/bin")
    assert compile_there(net) == 2
    assert "has no edgekit that ssh commands find. Install it there" in capsys.readouterr().err
    assert compile_there(net, "--plan") == 2
    assert main(["compile", str(net.path), "--on", "unreachable"]) == 1
    assert main(["compile", str(net.path), "--on", "orin;id"]) == 2
    assert Package.open(net.path).manifest.digest == before


Lie = Callable[[Package, Variant], None]


def rewritten(**fields: object) -> Lie:
    """The engine's entry in the manifest, with other fields."""

    def change(there: Package, engine: Variant) -> None:
        kept = [v for v in there.manifest.variants if v.id != engine.id]
        new = msgspec.structs.replace(engine, **fields)
        manifest = msgspec.structs.replace(there.manifest, variants=(*kept, new))
        (there.path / MANIFEST).write_bytes(encode(manifest))

    return change


LIES: dict[str, tuple[Lie, str]] = {
    "damaged": (lambda p, e: void((p.path / e.file).write_bytes(b"x" * e.bytes)), "did not arrive whole"),
    "cut": (lambda p, e: void((p.path / e.file).write_bytes(b"x")), "did not arrive whole"),
    "missing": (lambda p, e: (p.path / e.file).unlink(), "did not arrive whole"),
    "another model": (rewritten(settings={"source": "fp16", "source_sha256": "0" * 64}), "another model than 'fp16'"),
    "not an engine": (rewritten(format="onnx"), "which it is not"),
    "another place": (rewritten(file="../../evil"), "which it is not"),
    "a place outside": (rewritten(file="engines/../../evil"), "is refused"),
    "not there": (rewritten(id="other"), "that its package does not hold"),
    "newer": (lambda p, _e: void((p.path / MANIFEST).write_bytes(b'{"schema": 99}')), "newer than this one"),
}


def void(_value: object) -> None:
    pass


def test_what_a_device_says_is_checked(net: Package, rtx: Device) -> None:
    """What could come home in place of what was asked for."""
    there = Package.open(shutil.copytree(net.path, rtx.models / "net.edge"))
    there, (made,) = compile_package(there, ["sm_86"])
    for name, (change, what) in LIES.items():
        place = rtx.models / f"{name}.edge"
        copy = Package.open(shutil.copytree(there.path, place))
        change(copy, copy.variant(made.id))
        with Host("orin") as host, pytest.raises(EdgekitError, match=what):
            bring_home(net, host, f"models/{name}.edge", [made.id])
        assert Package.open(net.path).manifest.digest == net.manifest.digest, name
    assert [p.name for p in net.path.parent.iterdir() if p.name.startswith(".")] == []
    with Host("orin") as host:
        with pytest.raises(EdgekitError, match="an engine of a stage 'decoder'"):
            bring_home(net, host, "models/net.edge", [f"decoder/{made.id}"])
        bring_home(net, host, "models/net.edge", [made.id])
    assert Package.open(net.path).variant(made.id).sha256 == there.variant(made.id).sha256


def test_ctrl_c_here_ends_the_build_there(net: Package, rtx: Device) -> None:
    """The device's command is told when the one who asked is gone."""
    command = rtx.install_edgekit()
    command.write_text('#!/bin/sh\ntrap "echo ended >ended; exit 130" TERM\necho building >&2\nsleep 60 & wait\n')
    before = net.manifest.digest
    code = [sys.executable, "-m", "edgekit", "compile", net.path, "--on", PILOT]
    with subprocess.Popen(code, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "pilot@orin: building" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    end = time.monotonic() + 20
    while not (rtx.home / "ended").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert Package.open(net.path).manifest.digest == before
