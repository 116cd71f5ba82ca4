from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit.errors import MissingDependencyError, UsageError
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.record import ParquetWriter, open_csv, rows
from tests.telemetry import boards
from tests.telemetry.nvml_stub import run_with_stub


def test_every_value_has_a_name_a_quantity_and_a_unit_and_none_is_made_up(tmp_path: Path) -> None:
    now = Monitor(boards.orin_nano(tmp_path)).read()
    table = {(r.part, r.name, r.quantity): (r.value, r.unit) for r in rows(now)}
    assert table["rail", "VDD_IN", "voltage"] == (4.984, "V")
    assert table["power", "board", "power"] == (pytest.approx(9.250304), "W")
    assert table["gpu", "17000000.gpu", "clock"] == (306e6, "Hz")
    assert table["gpu", "17000000.gpu", "load"] == (0.452, "1")
    assert table["throttle", "average over-current (OC2)", "events"] == (4, "1")
    assert table["fan", "fan", "speed"] == (2213, "rpm")
    assert ("zone", "cv0-thermal", "temperature") not in table
    assert ("cpu", "all", "load") not in table, "load is a difference of two readings"


def test_a_gpu_is_named_by_its_uuid(tmp_path: Path) -> None:
    code = """
from edgekit.telemetry.monitor import Monitor
from edgekit.telemetry.record import rows
print([(r.quantity, r.value, r.unit) for r in rows(Monitor().read()) if r.part == "gpu" and r.name == "GPU-1234"])
"""
    out = run_with_stub(tmp_path, code)
    assert "('power', 81.25, 'W')" in out
    assert "('memory_temperature', 55.0, 'C')" in out
    assert "('slowed_by_power_cap', 2.5, 's')" in out


def test_a_reading_is_in_the_file_before_the_next_is_taken(tmp_path: Path) -> None:
    monitor, file = Monitor(boards.nano(tmp_path / "tree")), tmp_path / "run.csv"
    with open_csv(file, force=False) as writer:
        writer.write(monitor.read())
        one = len(file.read_text().splitlines())
        writer.write(monitor.read())
        assert len(file.read_text().splitlines()) > 1.9 * one
    with pytest.raises(UsageError, match="--force"):
        open_csv(file, force=False)


def test_without_pyarrow_no_file_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="--csv needs nothing"):
        ParquetWriter(tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []
