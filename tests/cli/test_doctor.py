from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgekit.cli.main import main
from tests.telemetry import trees


def test_this_machine_passes_and_every_missing_thing_has_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "works now: " in out
    assert "processor" in out
    assert "RAPL" in out or "rapl-cpu" in out


def test_json_lists_findings_with_fixes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json", "--root", str(trees.agx_orin(tmp_path))]) == 0
    document = json.loads(capsys.readouterr().out)
    findings = {f["name"]: f for f in document["findings"]}
    assert "AGX Orin" in findings["board"]["fact"]
    assert "sum of rails" in findings["jetson-rails"]["fact"]
    assert {f["status"] for f in document["findings"]} <= {"ok", "warn", "missing"}
    assert document["can_run"] is True


def test_without_a_runtime_it_fails_and_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "edgekit run lacks onnxruntime or tensorrt or tensorrt_rtx_bindings. Run: pip install 'edgekit[cpu]'" in out
    assert "nothing here can run a model" in out


def test_a_root_that_is_not_there_is_misuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--root", str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err
