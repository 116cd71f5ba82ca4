from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.errors import SensorError
from edgekit.telemetry.rapl import find_rapl
from tests.telemetry import trees


@contextmanager
def not_root() -> Iterator[None]:
    """Lose root's right to read everything, as an ordinary user has."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_packages_and_dram_are_summed_and_psys_is_kept_apart(tmp_path: Path) -> None:
    root = trees.rapl(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", 1_000_000),
            "intel-rapl:0:0": ("core", 5),
            "intel-rapl:0:1": ("dram", 2_000_000),
            "intel-rapl:1": ("package-1", 3_000_000),
            "intel-rapl:2": ("psys", 50_000_000),
            "intel-rapl-mmio:0": ("package-0", 1_000_000),
        },
    )
    found = find_rapl(root)
    assert found.reasons == ()
    cpu, platform = found.sensors
    assert (cpu.part, cpu.scope, cpu.source) == ("cpu", "2 CPU packages and DRAM", "rapl")
    assert platform.part == "platform"
    assert cpu.read().energy_j == 0
    trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 1_500_000), "intel-rapl:0:1": ("dram", 2_250_000)})
    trees.rapl(tmp_path, {"intel-rapl:0:0": ("core", 900_000), "intel-rapl:1": ("package-1", 4_000_000)})
    trees.rapl(tmp_path, {"intel-rapl-mmio:0": ("package-0", 1_500_000), "intel-rapl:2": ("psys", 60_000_000)})
    assert cpu.read().energy_j == pytest.approx(0.5 + 0.25 + 1.0)
    assert platform.read().energy_j == pytest.approx(10.0)


def test_a_counter_that_wraps_goes_on_growing(tmp_path: Path) -> None:
    root = trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 900)}, range_uj=999)
    (cpu,) = find_rapl(root).sensors
    readings = []
    for raw in (950, 20, 400, 10):  # wraps twice; the counter's range is 0 to 999
        trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", raw)}, range_uj=999)
        readings.append(cpu.read().energy_j)
    assert readings == pytest.approx([50e-6, 120e-6, 500e-6, 1110e-6])


def test_no_permission_is_a_sentence_with_the_way_out() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        trees.rapl(folder, {"intel-rapl:0": ("package-0", 1)})
        (folder / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        with not_root():
            found = find_rapl(folder)
    finally:
        shutil.rmtree(folder)
    assert found.sensors == ()
    assert "root only" in found.reasons[0]
    assert "sudo chmod" in found.reasons[0]


def test_a_machine_without_rapl_says_so(tmp_path: Path) -> None:
    found = find_rapl(tmp_path)
    assert found.sensors == ()
    assert "no /sys/class/powercap/intel-rapl" in found.reasons[0]


@pytest.mark.parametrize("content", ["", "rubbish", "-1"])
def test_a_zone_without_a_range_is_not_used(tmp_path: Path, content: str) -> None:
    root = trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    (root / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").write_text(content)
    found = find_rapl(root)
    assert found.sensors == ()
    assert "max_energy_range_uj" in found.reasons[0]


def test_a_counter_that_vanishes_is_one_named_error(tmp_path: Path) -> None:
    root = trees.rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    (cpu,) = find_rapl(root).sensors
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(SensorError, match="package-0"):
        cpu.read()
