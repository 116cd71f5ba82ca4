"""Packages to a device: whole, tested, in one step, or not at all; the old version serves until then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.cli.main import main
from edgekit.package import Package
from tests.deliver.device import Device, sshd
from tests.tiny import WEIGHT, tiny_package

TARGET = "pilot@orin:models"


def push(package: Package, *more: str) -> int:
    return main(["push", str(package.path), TARGET, *more])


def heavy(path: Path, size: int = 300_000, *, seed: int = 0, force: bool = False) -> Package:
    """A tiny package with a calibration file of so many random bytes."""
    package = tiny_package(path, force=force)
    with package.edit() as writer:
        writer.write("calibration.json", np.random.default_rng(seed).bytes(size))
        return writer.commit()


def broken(path: Path) -> Package:
    """A package whose samples say something else than its model."""
    package = tiny_package(path, force=True)
    with package.edit() as writer:
        x = np.ones((16, 4), np.float32)
        writer.write_samples({"x": x}, {"scores": 3 * x @ WEIGHT + 1})
        return writer.commit()


def digest(path: Path) -> str:
    return Package.open(path).manifest.digest


def sent(capsys: pytest.CaptureFixture[str]) -> int:
    return int(json.loads(capsys.readouterr().out)["sent_bytes"])


def test_it_is_sent_tested_and_put_in_place_and_the_second_time_nothing_is_done(
    tiny: Package, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    device.install_edgekit()
    assert push(tiny, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["self_test"]["variants"] == ["fp32", "int8"]
    assert found["version"].startswith("v000001-")
    assert (device.models / "tiny.edge").is_symlink()
    assert digest(device.models / "tiny.edge") == tiny.manifest.digest
    for name in tiny.manifest.all_files():
        Package.open(device.models / "tiny.edge").file(name)
    assert push(tiny) == 0
    assert "is this package already" in capsys.readouterr().out
    assert device.versions() == ["v000001"]


def test_only_what_changed_is_sent_and_versions_come_and_go(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    package = heavy(tmp_path / "tiny.edge")
    assert push(package, "--json") == 0
    assert sent(capsys) > 300_000
    first = package.manifest.digest
    for labels in (b"a\nb\nc\n", b"d\ne\nf\n", b""):
        with Package.open(package.path).edit() as writer:
            writer.write("labels.txt", labels)
            package = writer.commit()
        assert push(package, "--json") == 0
        assert sent(capsys) < 5000
        assert digest(device.models / "tiny.edge") == package.manifest.digest
    assert device.versions() == ["v000003", "v000004"]
    with package.edit() as writer:
        writer.write("labels.txt", b"g\nh\ni\n")
        package = writer.commit()
    assert push(package, "--keep", "3") == 0
    assert device.versions() == ["v000003", "v000004", "v000005"]
    assert first not in {digest(p) for p in (device.models / ".edgekit" / "tiny.edge").glob("v*/tiny.edge")}


def test_rollback_goes_back_step_by_step(tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    digests = []
    for samples in (2, 3, 4):
        package = tiny_package(tmp_path / "tiny.edge", samples=samples, force=True)
        digests.append(package.manifest.digest)
        assert push(package, "--keep", "5") == 0
    for wanted, name in ((1, "tiny"), (0, "tiny.edge")):
        capsys.readouterr()
        assert main(["push", "--rollback", name, TARGET, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["version"].startswith(f"v00000{wanted + 1}-")
        assert digest(device.models / "tiny.edge") == digests[wanted]
    assert main(["push", "--rollback", "tiny", TARGET]) == 2
    assert "No version of 'tiny.edge' before v000001-" in capsys.readouterr().err
    assert push(package) == 0  # what was taken back is pushed again, over the version that is there
    assert main(["push", "--rollback", "tiny", TARGET]) == 0
    assert digest(device.models / "tiny.edge") == digests[0]
    assert main(["push", "--rollback", "other", TARGET]) == 2
    assert "was not put there by edgekit push" in capsys.readouterr().err


def test_a_package_that_was_copied_there_by_hand_is_kept_as_the_version_before(tmp_path: Path, device: Device) -> None:
    old = tiny_package(device.models / "tiny.edge", samples=3)
    new = tiny_package(tmp_path / "tiny.edge", samples=5)
    assert push(new) == 0
    assert digest(device.models / "tiny.edge") == new.manifest.digest
    assert main(["push", "--rollback", "tiny", TARGET]) == 0
    assert digest(device.models / "tiny.edge") == old.manifest.digest


def test_a_push_that_is_cut_off_goes_on_where_it_stopped(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tiny_package(tmp_path / "tiny.edge")
    assert push(old) == 0
    new = heavy(tmp_path / "tiny.edge", 20_000_000, force=True)
    size = sum(f.bytes for f in new.manifest.all_files().values())
    device.cut_after(1500, "manifest.json")  # within the manifest, which is sent first
    capsys.readouterr()
    assert push(new) == 1
    error = capsys.readouterr().err
    assert "The connection to pilot@orin was lost after" in error
    assert "goes on from here" in error
    assert error.count("\n") == 1
    device.cut_after(100_000, "calibration.json")
    assert push(new) == 1
    (part,) = (device.models / ".edgekit" / "tiny.edge").glob("incoming-*/tiny.edge/calibration.json")
    assert part.stat().st_size == 100_000
    assert digest(device.models / "tiny.edge") == old.manifest.digest
    capsys.readouterr()
    assert push(new, "--json") == 0
    assert size - 110_000 < sent(capsys) < size - 100_000 + 3000
    assert digest(device.models / "tiny.edge") == new.manifest.digest
    assert Package.open(device.models / "tiny.edge").file("calibration.json")


def test_what_a_broken_push_left_damaged_is_sent_again(tmp_path: Path, device: Device) -> None:
    package = heavy(tmp_path / "tiny.edge")
    device.cut_after(100_000, "calibration.json")
    assert push(package) == 1
    (part,) = (device.models / ".edgekit").rglob("calibration.json")
    part.write_bytes(b"x" * 50_000)
    assert push(package) == 0
    assert Package.open(device.models / "tiny.edge").file("calibration.json")


def test_a_package_that_fails_its_self_test_never_takes_the_place_of_a_good_one(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    device.install_edgekit()
    good = tiny_package(tmp_path / "tiny.edge")
    assert push(good) == 0
    assert push(broken(tmp_path / "tiny.edge")) == 1
    error = capsys.readouterr().err
    assert "'tiny.edge' fails its self-test on pilot@orin, so it was not put in place: variant 'fp32': " in error
    assert digest(device.models / "tiny.edge") == good.manifest.digest
    assert device.versions() == ["v000001"]


def test_a_device_without_edgekit_is_said_and_one_that_is_named_must_be_there(
    tiny: Package, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(tiny, "--remote-edgekit", "/opt/none/edgekit") == 2
    assert "pilot@orin has no command '/opt/none/edgekit'" in capsys.readouterr().err
    assert not (device.models / "tiny.edge").exists()
    assert os.listdir(device.models) == []
    assert push(tiny) == 0
    assert "NOT tested there: pilot@orin has no edgekit on PATH" in capsys.readouterr().out
    command = device.install_edgekit(device.home / "my tools")
    with tiny.edit() as writer:
        writer.write("labels.txt", b"x\ny\nz\n")
        tiny = writer.commit()
    assert push(tiny, "--remote-edgekit", "~/my tools/edgekit", "--json") == 0
    assert json.loads(capsys.readouterr().out)["self_test"]["edgekit"] == str(command)


def test_an_edgekit_there_that_does_not_start_is_a_failed_test(
    tiny: Package, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    command = device.install_edgekit()
    command.write_text("#!/bin/sh\necho 'No module named numpy' >&2\nexit 1\n")
    assert push(tiny) == 1
    assert "so it was not put in place: No module named numpy. What was there" in capsys.readouterr().err
    assert os.listdir(device.models) == []


def test_a_full_disk_leaves_the_old_version_and_no_rest(
    tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tiny_package(tmp_path / "tiny.edge")
    assert push(old) == 0
    device.set("BLOCKS", "100")
    capsys.readouterr()
    assert push(heavy(tmp_path / "tiny.edge", force=True)) == 1
    error = capsys.readouterr().err
    assert error.startswith("edgekit: The disk of pilot@orin is full (or a limit is reached: ")
    assert error.count("\n") == 1
    assert digest(device.models / "tiny.edge") == old.manifest.digest
    assert device.versions() == ["v000001"]


def test_a_real_full_disk(tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    """A small file system in memory: what does not fit is known before it is sent."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", device.models], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        old = tiny_package(tmp_path / "tiny.edge")
        assert push(old) == 0
        capsys.readouterr()
        assert push(heavy(tmp_path / "tiny.edge", force=True)) == 1
        assert "kB free at models, and 30" in capsys.readouterr().err
        assert digest(device.models / "tiny.edge") == old.manifest.digest
        assert device.versions() == ["v000001"]
    finally:
        subprocess.run(["umount", device.models], check=True)


def test_what_is_wrong_here_is_seen_before_anything_moves_there(
    tiny: Package, tmp_path: Path, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny.path), "pilot@orin:none"]) == 1
    assert "there is no folder none" in capsys.readouterr().err
    assert not (device.home / "none").exists()
    odd = tiny_package(tmp_path / "my net.edge")
    assert push(odd) == 2
    assert "File name 'my net.edge' is refused" in capsys.readouterr().err
    data = (tiny.path / "int8.onnx").read_bytes()
    (tiny.path / "int8.onnx").write_bytes(data[:-1])
    assert push(tiny) == 1
    assert "'int8.onnx' in 'tiny.edge' was changed" in capsys.readouterr().err
    (tiny.path / "int8.onnx").write_bytes(data[:-1] + b"x")
    assert push(tiny) == 1
    assert "'int8.onnx' in 'tiny.edge' was changed: its SHA-256" in capsys.readouterr().err
    assert not (device.models / "tiny.edge").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["push", TARGET])
    assert main(["push", str(tmp_path / "none.edge"), TARGET]) == 2


def test_a_server_takes_up_what_is_pushed_and_what_is_rolled_back(tmp_path: Path, device: Device) -> None:
    """Its watch sees the link that moved; while a push is under way, and after one that failed, the old one answers."""
    first = tiny_package(tmp_path / "tiny.edge", weight=WEIGHT)
    assert push(first) == 0
    command = [sys.executable, "-m", "edgekit", "serve", device.models, "--port", "0", "--grpc-port", "off"]
    with subprocess.Popen([*command, "--watch", "0.1", "--json"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]

            def score() -> float:
                body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}]}
                request = urllib.request.Request(f"{url}/v2/models/tiny/infer", data=json.dumps(body).encode())
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return float(json.loads(answer.read())["outputs"][0]["data"][0])

            assert score() == 1
            device.cut_after(100, "fp32.onnx")
            second = tiny_package(tmp_path / "tiny.edge", weight=2 * WEIGHT, force=True)
            assert push(second) == 1
            time.sleep(0.3)
            assert score() == 1
            assert push(second) == 0
            assert_soon(lambda: score() == 2)
            assert main(["push", "--rollback", "tiny", TARGET]) == 0
            assert_soon(lambda: score() == 1)
        finally:
            server.terminate()
            server.wait(timeout=20)


def assert_soon(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_through_a_real_sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_SSH", raising=False)
    models = tmp_path / "device models"
    models.mkdir()
    old = tiny_package(models / "tiny.edge")
    new = heavy(tmp_path / "tiny.edge")
    target = f"127.0.0.1:{models}"
    with sshd(tmp_path) as arguments:
        assert main(["push", str(new.path), target, *arguments]) == 0
        assert digest(models / "tiny.edge") == new.manifest.digest
        assert main(["push", "--rollback", "tiny", target, *arguments]) == 0
        assert digest(models / "tiny.edge") == old.manifest.digest
