"""The documentation is run: command blocks, Python blocks, and the links between pages.

The README's `sh` blocks run first, in a folder with nothing but models/; every page's in a copy of what that leaves,
from top to bottom, but for lines that the README has run already. For the tests a port is a free one, a measurement
short, a frame small, /srv/models is a folder, and a device is this machine, reached through a stand-in for ssh.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.package import Package
from tests.data import ROOT
from tests.stages import layer, weight

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("**/*.md"),
        *(ROOT / "examples").glob("**/*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def commands(page: Path) -> list[str]:
    return "".join(blocks(page, "sh")).splitlines()


def run(lines: list[str], folder: Path, **more: str) -> None:
    """Run them as one script that ends at the first that fails."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which the pages use")
    text = (
        "\n".join(lines)
        .replace("8000", str(free_port()))
        .replace("/srv/models", str(folder / "srv"))
        .replace("480x640", "48x64")
    )
    text = re.sub(r"^(edgekit bench .*--energy.*)$", r"\1 --seconds 0.2", text, flags=re.MULTILINE)
    text = re.sub(r"^(edgekit bench (?!.*--(?:energy|quick)).*?)( +#.*)?$", r"\1 --quick", text, flags=re.MULTILINE)
    script = f"set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{text}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "EDGEKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def after_the_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's commands leave."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("cache", "__pycache__"))
    lines = [line for line in commands(ROOT / "README.md") if not line.startswith(("make ", "git ", "cd "))]
    assert len(lines) > 8, "the README shows its commands in sh blocks"
    run(lines, folder)
    return folder


def test_the_readmes_commands_run_in_order(after_the_readme: Path) -> None:
    """And its `make` lines are known."""
    assert Package.open(after_the_readme / "digits_cnn.edge").variant("int8")
    makes = [line for line in commands(ROOT / "README.md") if line.startswith("make ")]
    assert makes
    for line in makes:
        subprocess.run([*line.split("#")[0].split(), "-n"], cwd=ROOT, check=True, capture_output=True)


def for_deployment(folder: Path) -> dict[str, str]:
    """A device that was given the package by hand; resnet.edge is the demo's package."""
    device = folder / "srv"
    for place in (folder, device):
        shutil.copytree(folder / "digits_cnn.edge", place / "resnet.edge")
    with Package.open(device / "resnet.edge").edit() as writer:
        writer.write("calibration.json", b"{}")
        writer.commit()
    return {
        "EDGEKIT_SSH": str(ROOT / "tests" / "deliver" / "ssh.sh"),
        "STAND_IN_HOME": str(folder),
        "STAND_IN_PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }


def for_plugins(folder: Path) -> dict[str, str]:
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC (pip install 'edgekit[plugins]')")
    shutil.copytree(folder / "digits_cnn.edge", folder / "model.edge")
    return {}


def for_tensorrt(folder: Path) -> dict[str, str]:
    """The ONNX files of the page, small, with the names that it uses."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX (pip install 'edgekit[rtx]')")
    layer(folder / "encoder.onnx", "x", "h", 8, 16)
    layer(folder / "decoder.onnx", "h", "y", 16, 4)
    layer(folder / "unet.onnx", "noise", "latent", 8, 16)
    layer(folder / "vae.onnx", "x", "image", 16, 4)
    nodes, inner = [], ["x", "/layers.11/Add_output_0", "y"]
    for before, after in itertools.pairwise(inner):
        nodes.append(helper.make_node("MatMul", [before, "w"], [f"{after}/m"]))
        nodes.append(helper.make_node("Relu", [f"{after}/m"], [after]))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], [numpy_helper.from_array(weight(8, 8), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "large.onnx")
    rows = np.ones((2, 8), np.float32)
    np.savez(folder / "inputs.npz", noise=rows)
    np.savez(folder / "input.npz", x=rows)
    return {}


PREPARED = {"deployment.md": for_deployment, "plugins.md": for_plugins, "tensorrt.md": for_tensorrt}
"""What a page takes for granted, beside the README's package and models/; the variables that its commands run with."""


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs" and commands(p)], ids=lambda p: p.name)
def test_a_pages_commands_run_in_order(page: Path, after_the_readme: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(after_the_readme, folder)
    more = PREPARED.get(page.name, lambda _folder: {})(folder)
    done = set(commands(ROOT / "README.md"))
    assert all(command.split()[0] in {"edgekit", "curl"} for command in commands(page)), "anything else is marked text"
    run([line for line in commands(page) if line not in done], folder, **more)


def test_the_readmes_python_runs(after_the_readme: Path) -> None:
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=after_the_readme, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_pages_hold(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_that_pages_name_exist(page: Path) -> None:
    from edgekit.cli.main import COMMANDS

    for block in blocks(page, "sh"):
        for command in re.findall(r"^edgekit (\w+)", block, re.MULTILINE):
            assert command in COMMANDS
