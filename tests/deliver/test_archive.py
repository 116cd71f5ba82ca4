"""One file for a package: the same bytes for the same content."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from edgekit.deliver.archive import content_digest, header, pack
from edgekit.deliver.unpack import unpack
from edgekit.errors import IntegrityError, StorageError, UsageError
from edgekit.package import Package
from tests.stages import pair
from tests.tiny import tiny_package


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_the_same_content_is_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = tiny_package(tmp_path / "a" / "t.edge")
    second = Package.open(shutil.copytree(first.path, tmp_path / "b" / "t.edge"))
    for file in second.path.iterdir():
        os.utime(file, (1, 1))
        file.chmod(0o600)
    second.write_report("bench.json", b"{}")
    made = [pack(p, p.path.parent / f"t.edge.{suffix}") for p in (first, second)]
    assert Path(made[0].path).read_bytes() == Path(made[1].path).read_bytes()
    assert made[0].sha256 == made[1].sha256
    assert content_digest(first) == content_digest(second) != content_digest(tiny_package(tmp_path / "o.edge"))


def test_any_tar_and_sha256sum_read_it(tmp_path: Path) -> None:
    package = pair(tmp_path / "p")
    pack(package, tmp_path / "pair.edge.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "pair.edge.tar"], cwd=tmp_path / "out", check=True)
    done = subprocess.run(["sha256sum", "-c", "pair.edge.sha256"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count("OK") == 8
    with tarfile.open(tmp_path / "pair.edge.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in archive} == {(0, 0, 0, 0o644, "")}
    assert [s.name for s, _ in Package.open(tmp_path / "out" / "pair.edge").stages()] == ["encoder", "decoder"]


def test_long_names_and_large_files_fit_as_tar_reads_them() -> None:
    name = f"net.edge/{'d' * 60}/{'f' * 90}"
    found = tarfile.TarInfo.frombuf(header(name, (9 << 30) + 1), "utf-8", "strict")
    assert (found.name, found.size, found.isreg()) == (name, (9 << 30) + 1, True)
    with pytest.raises(UsageError, match="too long"):
        header("x" * 101, 1)
    with pytest.raises(UsageError, match="too long"):
        header(f"{'d' * 160}/x", 1)


def test_a_changed_file_is_not_packed_and_the_old_archive_stays(tiny: Package, tmp_path: Path) -> None:
    archive = tmp_path / "t.edge.tar"
    pack(tiny, archive)
    before = archive.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        pack(tiny, archive)
    with pytest.raises(UsageError, match=r"expected NAME\.edge\.tar"):
        pack(tiny, tmp_path / "t.zip")
    with pytest.raises(StorageError, match="folder does not exist"):
        pack(tiny, tmp_path / "none" / "t.edge.tar")
    for damage in (b"x", (tiny.path / "int8.onnx").read_bytes() + b"x"):
        (tiny.path / "int8.onnx").write_bytes(damage)
        with pytest.raises(IntegrityError, match=r"'int8\.onnx' in 'tiny\.edge' was changed"):
            pack(tiny, archive, force=True)
    (tiny.path / "int8.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"lacks its file 'int8\.onnx'"):
        pack(tiny, archive, force=True)
    assert archive.read_bytes() == before
    assert not list(tmp_path.glob(".t.edge.tar*"))


def test_what_was_packed_is_unpacked(tiny: Package, tmp_path: Path) -> None:
    heard: list[int] = []
    pack(tiny, tmp_path / "t.edge.tar.gz", progress=heard.append)
    found = unpack(tmp_path / "t.edge.tar.gz", tmp_path / "again.edge")
    assert sum(heard) == found.bytes
    assert content_files(tiny.path) == content_files(tmp_path / "again.edge")


def content_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
