from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.capture import capture, telemetry_files
from tests.telemetry import boards
from tests.telemetry.trees import write

SECRETS = {
    "proc/device-tree/serial-number": "SECRET-1\0",
    "sys/class/dmi/id/product_serial": "SECRET-2\n",
    "sys/class/hwmon/hwmon1/device/serial": "SECRET-3\n",
    "etc/hostname": "SECRET-4\n",
    "etc/machine-id": "SECRET-5\n",
    "sys/class/net/eth0/address": "SECRET-6\n",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nSerial\t\t: SECRET-7\n",
    "proc/stat": "cpu  1 2 3 4 5 6 7 8\nintr SECRET-8\n",
}


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive.read_bytes()))) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_nothing_but_telemetry_is_recorded(tmp_path: Path) -> None:
    root = write(boards.orin_nano(tmp_path / "tree"), SECRETS)
    done = capture(tmp_path / "x.tar.gz", root=root, duration_s=0.01)
    everything = contents(done.path)
    assert b"SECRET" not in b"".join(everything.values())
    assert "tree/proc/cpuinfo" in everything
    allowed = {f"tree/{n}" for n in telemetry_files(root)} | {"tree/edgekit/origin", "tree/edgekit/nvpmodel-query"}
    assert set(everything) <= allowed | {"capture.json", "frames.jsonl"}
    with tarfile.open(done.path) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar.getmembers()} == {(0, 0, "")}


@pytest.mark.parametrize(
    ("name", "keywords", "said"),
    [
        ("x.zip", {}, "expected for example"),
        ("there.tar.gz", {}, "--force"),
        ("nowhere/x.tar.gz", {}, "does not exist"),
        ("x.tar.gz", {"duration_s": 0}, "must be positive"),
        ("x.tar.gz", {"interval_s": float("nan")}, "must be positive"),
    ],
)
def test_captures_that_cannot_be_made(tmp_path: Path, name: str, keywords: dict[str, float], said: str) -> None:
    (tmp_path / "there.tar.gz").write_text("mine")
    with pytest.raises(UsageError, match=said):
        capture(tmp_path / name, root=boards.nano(tmp_path / "tree"), **keywords)  # type: ignore[arg-type]
    assert (tmp_path / "there.tar.gz").read_text() == "mine"


def test_a_machine_without_telemetry_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(SensorError, match="mount /sys"):
        capture(tmp_path / "x.tar.gz", root=tmp_path / "tree")
    assert not (tmp_path / "x.tar.gz").exists()


def test_without_zstandard_it_says_so_before_recording_and_what_needs_nothing(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["zstandard"] = None
from pathlib import Path
from edgekit.telemetry.capture import capture
capture(Path({str(tmp_path / "x.tar.zst")!r}), root=Path({str(boards.nano(tmp_path / "tree"))!r}), duration_s=600)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "a name that ends in .tar.gz needs nothing" in done.stderr
    assert "pip install 'edgekit[telemetry]'" in done.stderr
