from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plugins_trt.errors import PluginError
from plugins_trt.layer_norm_residual import LayerNormResidual
from plugins_trt.registry import MODULES, operator, operators

OPERATOR = """
from plugins_trt.layer_norm_residual import LayerNormResidual

class Mine(LayerNormResidual):
    def __init__(self):
        super().__init__(keep_sum=False, int8=False)
        self.name = NAME

mine = Mine()
broken = 5
"""


def third_party(folder: Path, entry: str, name: str = "mine") -> subprocess.CompletedProcess[str]:
    """The names of all operators where a package with that entry point is installed too."""
    (folder / "thirdparty.py").write_text(OPERATOR.replace("NAME", repr(name)))
    info = folder / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgekit.plugins]\nmine = {entry}\n")
    code = "from plugins_trt.registry import operators; print(*operators())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_module_gives_operators_by_name() -> None:
    assert len(operators()) >= len(MODULES)
    for name in operators():
        assert operator(name).name == name
        assert operator(name).domain == "edgekit"
        assert len(operator(name).digest()) == 64


def test_an_unknown_name_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(PluginError, match=r"no operator 'batch_norm'\. Operators: .*group_norm_silu"):
        operator("batch_norm")


def test_another_package_adds_its_operators(tmp_path: Path) -> None:
    done = third_party(tmp_path, "thirdparty:mine")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout.split()


@pytest.mark.parametrize(
    ("entry", "name", "said"),
    [
        ("thirdparty:missing", "mine", "'thirdparty:missing' (edgekit.plugins entry point 'mine') cannot be loaded"),
        ("thirdparty:broken", "mine", "gives int, not a plugins_trt.operator.Operator"),
        ("thirdparty:mine", "group_norm_silu", "an operator 'group_norm_silu', and there is one of that name already"),
    ],
)
def test_a_package_that_is_wrong_is_named(tmp_path: Path, entry: str, name: str, said: str) -> None:
    done = third_party(tmp_path, entry, name)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_a_subclass_elsewhere_shares_the_kernel() -> None:
    class Mine(LayerNormResidual):
        pass

    base = operator("layer_norm_residual")
    mine = Mine(keep_sum=False, int8=False)
    assert mine.source() == base.source()
    assert mine.digest() != base.digest()
