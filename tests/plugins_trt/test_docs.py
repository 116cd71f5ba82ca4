"""The walk-through in docs/plugins.md is followed to the letter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import ROOT

PAGE = (ROOT / "docs" / "plugins.md").read_text()

FOLLOW = """
import sys
sys.path[:0] = [{root!r}, {folder!r}]
import onnx
from plugins_trt.body import model_of
from plugins_trt.registry import operator
from plugins_trt.report import kernel_report
from edgekit.runtime.ort import OrtSession
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

op = operator("scaled_relu")
for call in op.small_examples():
    arrays = op.sample(call)
    want = op.reference(call, *arrays)
    assert_close(run_operator(op, call, *arrays), want)
    model = model_of(op, call)
    onnx.checker.check_model(model, full_check=True)
    with OrtSession(model.SerializeToString()) as session:
        out = session.run({{port.name: a for port, a in zip(op.inputs, arrays)}})
    assert_close(list(out.values()), want)
report = kernel_report(op, op.examples()[0], sm=87)
assert not report.resources.spills
print("followed", report.occupancy.fraction)
"""


def block(language: str) -> str:
    """The text of the blocks of that language."""
    return "".join(blocks(language))


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found


def follow(tmp_path: Path) -> None:
    """Install what the walk-through writes into a folder, as pip would."""
    package = tmp_path / "mypackage"
    (package / "kernels").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "operators.py").write_text(block("python operator"))
    (package / "kernels" / "scaled_relu.cu").write_text(block("cuda"))
    info = tmp_path / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(block("toml").replace("project.entry-points.", "").replace('"', ""))


def test_the_operator_of_the_walk_through_works(tmp_path: Path) -> None:
    follow(tmp_path)
    script = FOLLOW.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("followed 1.0")


def test_the_model_of_the_page_exports() -> None:
    pytest.importorskip("torch")
    code = block("python") + block("python continued")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_report_of_the_page_is_todays(capsys: pytest.CaptureFixture[str]) -> None:
    from edgekit.cli.main import main
    from plugins_trt.compile import nvrtc_version
    from tests.plugins_trt.golden import PATH

    release = ".".join(map(str, nvrtc_version()))
    if f'"nvrtc": "{release}"' not in PATH.read_text():
        pytest.skip(f"needs the NVRTC that the page was written with; this is {release}")
    assert main(["plugins", "report", "group_norm_silu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = blocks("text")[0].splitlines()
    assert [line.split() for line in shown] == [line.split() for line in printed[: len(shown)]]
