"""The documentation is run: command blocks, Python blocks, and the links between pages."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.package import Package
from tests.data import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_the_readmes_commands_run_in_order(tmp_path: Path) -> None:
    """All `sh` blocks as one script in a folder with nothing but `models/`; `make` lines must at least be known."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which the README's commands use")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    lines = "".join(blocks(ROOT / "README.md", "sh")).splitlines()
    script = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    makes = [line for line in lines if line.startswith("make ")]
    script += [line for line in lines if not line.startswith(("make ", "git ", "cd "))]
    assert len(script) > 8, "the README shows its commands in sh blocks"
    text = "\n".join(script).replace("8000", str(free_port()))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in makes:
        subprocess.run([*line.split("#")[0].split(), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_the_readmes_python_runs(tmp_path: Path, digits: Package) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    assert digits.path == tmp_path / "digits_cnn.edge"
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert code
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_hold(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_pages_name_exist(page: Path) -> None:
    from edgekit.cli.main import COMMANDS

    for block in blocks(page, "sh"):
        for command in re.findall(r"^edgekit (\w+)", block, re.MULTILINE):
            assert command in COMMANDS
