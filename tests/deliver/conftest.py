from __future__ import annotations

from pathlib import Path

import pytest

from tests.deliver.device import Device


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)
