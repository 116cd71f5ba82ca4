"""Every example is run as its page says, on real models and digits."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.package import Package
from tests.data import ROOT
from tests.deliver.device import Device

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name[0].isdigit())

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def example(tmp_path: Path) -> Run:
    """Runs a script of examples/ in an empty folder; the test says which exit code it expects."""

    def run(script: str, *args: str | Path, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        program = "bash" if script.endswith(".sh") else sys.executable
        command = [program, str(EXAMPLES / script), *map(str, args)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(**more), capture_output=True, text=True, timeout=200
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def digits_read(text: str) -> list[tuple[str, str]]:
    """What each picture shows, by its name, and what was read."""
    return re.findall(r"_is_(\d)\.png +(\d) ", text)


def test_each_example_has_a_page_of_one_screen_and_a_script() -> None:
    index = (EXAMPLES / "README.md").read_text()
    assert [name[:2] for name in FOLDERS] == [f"{n:02d}" for n in range(1, len(FOLDERS) + 1)]
    for name in FOLDERS:
        assert f"({name}/README.md)" in index
        assert len((EXAMPLES / name / "README.md").read_text().splitlines()) <= 50
        assert (EXAMPLES / name / "main.py").exists() or os.access(EXAMPLES / name / "run.sh", os.X_OK)


def test_01_pictures_get_their_labels(example: Run, digits: Package) -> None:
    """The package is there already: its export is a fixture's, by the same command."""
    found = digits_read(example("01_classify_on_a_laptop/run.sh").stdout)
    assert len(found) == 8
    assert all(shown == read for shown, read in found)


def test_02_frames_of_a_folder_get_their_labels(example: Run, digits: Package) -> None:
    example("digits.py", "frames", "--count", "5", "--frames")
    said = example("02_camera_on_jetson/main.py", digits.path, "--source", "frames").stdout
    assert re.findall(r"frame +\d+: (\d)", said) == ["0", "1", "2", "3", "4"]
    assert "5 frames, median" in said
    assert "energy of the machine meanwhile: " in said
    assert "gave no frame" in example("02_camera_on_jetson/main.py", digits.path, "--source", ".", code=1).stderr


def test_03_a_budget_is_met_or_the_script_fails(example: Run, digits: Package) -> None:
    said = example("03_int8_with_an_accuracy_budget/run.sh", "0.3", "--plain").stdout
    assert re.search(r"^int8: top1 .* budget 0\.3\)", said, re.MULTILINE)
    assert re.search(r"^int8 .* ok", said, re.MULTILINE)


def test_04_a_server_under_load_gives_no_wrong_answer(example: Run, digits: Package) -> None:
    said = example("04_serve_and_load_test/run.sh", str(free_port()), "0.5").stdout
    assert ", 0 wrong" in said
    assert int(re.findall(r"^edgekit_requests_total\{.*\} (\d+)", said, re.MULTILINE)[0]) > 4


def test_05_joules_or_why_there_are_none_then_a_setting(example: Run, digits: Package) -> None:
    quick = ["--seconds", "0.05", "--variant", "int8", "--batch", "1,4", "--threads", "1", "--streams", "1"]
    said = example("05_energy_tuning/main.py", digits.path, *quick, "--no-plot", "--keep-power").stdout
    assert re.search(r"\d+ inferences of '\w+' in 0.05 s", said)
    assert re.search(r" J ± |RAPL: |NVML: |Jetson: |renewals", said)
    assert "edgekit serve digits_cnn.edge --variant int8" in said


class TestPlugin:
    """Example 06."""

    FOLDER = EXAMPLES / "06_write_a_plugin"

    def test_its_script_checks_and_compiles_it(self, example: Run) -> None:
        pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC (pip install 'edgekit[plugins]')")
        said = example("06_write_a_plugin/main.py").stdout
        assert "Add, Sigmoid, Mul became bias_silu" in said
        assert re.findall(r"^(\S+): \d+ registers, no spills", said, re.MULTILINE) == ["orin-nano", "rtx-4090", "thor"]

    def test_its_kernel_computes_the_reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.cuda_on_host.host import run_operator
        from tests.plugins_trt.checks import assert_close

        monkeypatch.syspath_prepend(self.FOLDER)
        from my_ops.bias_silu import bias_silu

        for call in bias_silu.small_examples():
            arrays = bias_silu.sample(call)
            assert_close(run_operator(bias_silu, call, *arrays), bias_silu.reference(call, *arrays))

    def test_installed_it_is_known_to_edgekit(self, tmp_path: Path) -> None:
        shutil.copytree(self.FOLDER / "my_ops", tmp_path / "my_ops")
        info = tmp_path / "my_ops-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-ops\nVersion: 1.0\n")
        points = re.search(
            r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"', (self.FOLDER / "pyproject.toml").read_text()
        )
        assert points is not None
        (info / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(*points.groups()))
        command = [sys.executable, "-m", "edgekit", "plugins", "list"]
        done = subprocess.run(command, env=environment(PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
        assert "SiLU of x plus one bias a channel" in done.stdout, done.stderr


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server that watches `folder`."""
    command = [sys.executable, "-m", "edgekit", "serve", str(folder), "--port", "0", "--grpc-port", "off", "--json"]
    with subprocess.Popen([*command, "--watch", "0.2"], stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()


def served(folder: Path) -> str:
    """Which package lies there."""
    return Package.open(folder / "digits_cnn.edge").manifest.digest


def test_07_devices_get_it_and_go_back_when_one_does_not_serve(
    example: Run, digits: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders with a server each stand for two devices that have the package already."""
    pytest.importorskip("cryptography", reason="needs cryptography (pip install 'edgekit[sign]')")
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which the example uses")
    device = Device(tmp_path, monkeypatch)
    device.install_edgekit()
    folders = [device.home / "one", device.home / "two"]
    for folder in folders:
        shutil.copytree(digits.path, folder / "digits_cnn.edge")
    with digits.edit() as writer:
        writer.write("calibration.json", b"{}")
        second = writer.commit()
    listed = digits.path.parent / "devices.txt"
    with serving(folders[0]) as one:
        with serving(folders[1]) as two:
            listed.write_text(f"jetson@one:{folders[0]} {one}\njetson@two:{folders[1]} {two}\n")
            said = example("07_fleet/run.sh", second.path, "team.key", listed, WAIT_S="0.5").stdout
            assert re.findall(r"jetson@(\w+):\S+ serves digits_cnn", said) == ["one", "two"]
            assert [served(folder) for folder in folders] == [second.manifest.digest] * 2
            assert (folders[1] / "digits_cnn.edge" / "signature.json").exists()
        with second.edit() as writer:
            writer.write("calibration.json", b'{"another": 1}')
            third = writer.commit()
        failed = example("07_fleet/run.sh", third.path, "team.key", listed, code=1, WAIT_S="0.5", TRIES="1")
    assert "going back on 2 devices" in failed.stderr
    assert [served(folder) for folder in folders] == [second.manifest.digest] * 2
