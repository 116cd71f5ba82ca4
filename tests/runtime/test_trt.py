from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import MissingDependencyError, UsageError
from edgekit.runtime.trt import TrtSession
from edgekit.trt_api import MODULES, load_module
from tests.runtime.on_stub.driver import assert_passes_on_stub


def test_sessions_on_a_stub_of_the_driver(tmp_path: Path) -> None:
    assert_passes_on_stub("check_trt.py", "check_trt_tensors.py", "check_trt_faults.py", folder=tmp_path)


def test_the_cpu_is_no_place_for_an_engine() -> None:
    with pytest.raises(UsageError, match="runs on a GPU, but device is cpu"):
        TrtSession(b"", device="cpu")


def test_a_module_that_is_not_installed_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, MODULES["tensorrt-rtx"], None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgekit\[rtx\]'"):
        load_module("tensorrt-rtx")
