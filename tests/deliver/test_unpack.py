"""Archives from anyone: what is damaged or made to do harm is refused in a sentence, and leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.deliver.archive import header, pack, padding
from edgekit.deliver.unpack import unpack
from edgekit.errors import EdgekitError, IntegrityError, PackageError, SignatureError, StorageError, UsageError
from edgekit.package import Package
from edgekit.signature import TrustedKeys, new_key, sign
from tests.tiny import tiny_package

Members = list[tuple[str, bytes]]


@pytest.fixture
def archive(tiny: Package, tmp_path: Path) -> Path:
    pack(tiny, tmp_path / "tiny.edge.tar")
    return tmp_path / "tiny.edge.tar"


def members(archive: Path) -> Members:
    with tarfile.open(archive) as file:
        return [(m.name, file.extractfile(m).read()) for m in file]  # type: ignore[union-attr]


def written(path: Path, found: Members) -> Path:
    data = b"".join(header(n, len(d)) + d + padding(len(d)) for n, d in found)
    path.write_bytes(data + bytes(1024))
    return path


def relisted(found: Members) -> Members:
    """With a list of digests that fits what there is."""
    lines = [f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in found[1:]]
    return [(found[0][0], "".join(lines).encode()), *found[1:]]


def special(kind: bytes, name: str = "tiny.edge/fp32.onnx", link: str = "/etc/passwd") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.USTAR_FORMAT)


HARM: dict[str, tuple[Callable[[Members], Members], str]] = {
    "up": (lambda m: [*m, ("tiny.edge/../../evil", b"x")], "no file of the package"),
    "up, listed": (lambda m: relisted([*m, ("tiny.edge/../../evil", b"x")]), "leaves the package"),
    "absolute": (lambda m: relisted([*m, ("/etc/evil", b"x")]), "lists '/etc/evil'"),
    "another folder": (lambda m: relisted([*m, ("other.edge/x", b"x")]), "lists 'other.edge/x'"),
    "not normal": (lambda m: relisted([*m, ("tiny.edge/./x", b"x")]), "lists 'tiny.edge/./x'"),
    "unknown file": (lambda m: relisted([*m, ("tiny.edge/x.so", b"x")]), "other files than its manifest"),
    "unlisted file": (lambda m: [*m, ("tiny.edge/x.so", b"x")], "no file of the package"),
    "twice": (lambda m: [*m, m[-1]], "there twice"),
    "listed twice": (lambda m: relisted([*m, m[-1]]), "lists 'tiny.edge/samples.npz'"),
    "twice in place of another": (lambda m: [*m[:-2], m[-1], m[-1]], "there twice"),
    "file missing": (lambda m: m[:-1], r"lacks 'samples\.npz'"),
    "file missing in list": (lambda m: relisted(m[:-1]), "other files than its manifest"),
    "other bytes": (lambda m: [*m[:-1], (m[-1][0], bytes(len(m[-1][1])))], "is damaged"),
    "other bytes, listed": (lambda m: relisted([*m[:-1], (m[-1][0], bytes(len(m[-1][1])))]), "other digests"),
    "longer": (lambda m: [*m[:-1], (m[-1][0], m[-1][1] + b"x")], "its manifest"),
    "manifest late": (lambda m: [m[0], *m[2:], m[1]], r"lacks 'manifest\.json'"),
    "manifest changed": (lambda m: relisted([m[0], (m[1][0], m[1][1].replace(b"tiny", b"evil")), *m[2:]]), "digest"),
    "manifest not listed": (lambda m: [(m[0][0], m[0][1].partition(b"\n")[2]), *m[1:]], r"SHA-256 of 'manifest\.json'"),
    "list of other lines": (lambda m: [(m[0][0], m[0][1] + b"rm -rf /\n"), *m[1:]], "list of digests"),
    "hidden folder": (lambda m: [(f".{m[0][0]}", m[0][1]), *m[1:]], "refused"),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_edgekit_pack_does_not_write_is_refused(archive: Path, tmp_path: Path, harm: str) -> None:
    change, what = HARM[harm]
    (tmp_path / "in").mkdir()
    target = tmp_path / "in" / "tiny.edge"
    with pytest.raises(EdgekitError, match=what):
        unpack(written(archive, change(members(archive))), target)
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.XHDTYPE, "does not write"),
        (tarfile.GNUTYPE_SPARSE, "does not write"),
        (tarfile.GNUTYPE_LONGNAME, "does not write"),
    ],
)
def test_links_devices_and_extensions_are_refused(archive: Path, tmp_path: Path, kind: bytes, what: str) -> None:
    found = members(archive)
    start = b"".join(header(n, len(d)) + d + padding(len(d)) for n, d in found[:2])
    archive.write_bytes(start + special(kind) + bytes(1024))
    (tmp_path / "in").mkdir()
    with pytest.raises(IntegrityError, match=what):
        unpack(archive, tmp_path / "in" / "tiny.edge")
    assert list((tmp_path / "in").iterdir()) == []


def test_every_cut_and_many_flipped_bytes_are_seen(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    target = tmp_path / "in.edge"
    ends = sum(len(d) + 512 + len(padding(len(d))) for _, d in members(archive))
    for cut in (0, 1, 511, 512, 513, 1500, 4000, ends - 600, ends):
        archive.write_bytes(data[:cut])
        with pytest.raises(EdgekitError, match=r"cut off|not an archive"):
            unpack(archive, target)
        assert not target.exists()
    for place in range(0, ends, 97):
        archive.write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        try:
            unpack(archive, target, force=True)
        except EdgekitError:
            assert not list(tmp_path.glob(".in.edge*"))
        else:  # padding between files: the content is whole
            assert Package.open(target).samples().count == 16


def test_a_compressed_archive_that_is_cut_or_damaged_is_refused(tiny: Package, tmp_path: Path) -> None:
    archive = tmp_path / "t.edge.tar.gz"
    pack(tiny, archive)
    data = archive.read_bytes()
    for damaged in (data[:-4], data[:-1], data[: len(data) // 2], data[:-8] + b"\0\0\0\0" + data[-4:]):
        archive.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"cut off|damaged"):
            unpack(archive, tmp_path / "in.edge")
    archive.write_bytes(data + b"more")
    with pytest.raises(IntegrityError, match="damaged"):
        unpack(archive, tmp_path / "in.edge")
    assert not (tmp_path / "in.edge").exists()


def test_bombs_take_neither_memory_nor_disk(archive: Path, tmp_path: Path) -> None:
    """Sizes that are stated, and gigabytes of zeros behind a few kilobytes."""
    found = members(archive)
    archive.write_bytes(header(found[0][0], 1 << 40) + bytes(4096))
    with pytest.raises(IntegrityError, match="at most"):
        unpack(archive, tmp_path / "in.edge")
    bomb = tmp_path / "bomb.edge.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        whole = b"".join(header(n, len(d)) + d + padding(len(d)) for n, d in found)
        file.write(whole)
        for _ in range(64):
            file.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError, match="goes on after its end"):
        unpack(bomb, tmp_path / "in.edge")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # kB
    assert not (tmp_path / "in.edge").exists()


def test_the_limit_is_checked_against_what_is_stated_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    ends = sum(512 + len(d) + len(padding(len(d))) for _, d in members(archive)[:2])
    archive.write_bytes(archive.read_bytes()[:ends])  # nothing after the manifest
    with pytest.raises(UsageError, match="more than the limit"):
        unpack(archive, tmp_path / "in.edge", limit_bytes=1000)
    assert not (tmp_path / "in.edge").exists()


def test_a_full_disk_leaves_what_was_there(archive: Path, tmp_path: Path) -> None:
    """The size of files is limited in a process of its own, as on a disk that fills up."""
    (tmp_path / "in").mkdir()
    there = tiny_package(tmp_path / "in" / "tiny.edge")
    before = there.manifest.digest
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "from edgekit.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "unpack", archive, "-o", there.path, "--force"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "a file would pass the size limit" in done.stderr
    assert Package.open(there.path).manifest.digest == before
    assert os.listdir(there.path.parent) == ["tiny.edge"]


def test_the_package_that_is_there_is_replaced_only_by_a_whole_one(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    old = tiny_package(tmp_path / "in" / "tiny.edge", samples=3)
    with pytest.raises(UsageError, match="exists"):
        unpack(archive, old.path)
    data = archive.read_bytes()
    archive.write_bytes(data[:-2000])
    with pytest.raises(IntegrityError):
        unpack(archive, old.path, force=True)
    assert Package.open(old.path).samples().count == 3
    archive.write_bytes(data)
    found = unpack(archive, old.path, force=True)
    assert Package.open(found.path).samples().count == 16
    assert os.listdir(tmp_path / "in") == ["tiny.edge"]
    (tmp_path / "in" / "mine.edge").mkdir()
    with pytest.raises(UsageError, match="not a package"):
        unpack(archive, tmp_path / "in" / "mine.edge", force=True)
    with pytest.raises(UsageError, match=r"expected NAME\.edge"):
        unpack(archive, tmp_path / "in" / "mine")


def test_a_signature_goes_along_and_is_checked_before_anything_is_written(tiny: Package, tmp_path: Path) -> None:
    new_key(tmp_path / "k")
    keys = TrustedKeys([tmp_path / "k.pub"])
    pack(tiny, tmp_path / "plain.edge.tar")
    with pytest.raises(SignatureError, match="is not signed"):
        unpack(tmp_path / "plain.edge.tar", tmp_path / "in.edge", keys=keys)
    fingerprint = sign(tiny, tmp_path / "k")
    pack(tiny, tmp_path / "t.edge.tar")
    assert unpack(tmp_path / "t.edge.tar", tmp_path / "in.edge", keys=keys).signed_by == fingerprint
    assert keys.check(Package.open(tmp_path / "in.edge")) == fingerprint
    (tmp_path / "evil").mkdir()
    evil = tiny_package(tmp_path / "evil" / "tiny.edge", samples=3)
    (evil.path / "signature.json").write_bytes((tiny.path / "signature.json").read_bytes())
    pack(evil, tmp_path / "evil.edge.tar")
    with pytest.raises(SignatureError, match="changed after it was signed"):
        unpack(tmp_path / "evil.edge.tar", tmp_path / "in.edge", keys=keys, force=True)
    assert keys.check(Package.open(tmp_path / "in.edge")) == fingerprint


def test_other_files_are_no_archives(tmp_path: Path, archive: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        file.addfile(tarfile.TarInfo("a/b"))
    for data in (b"", b"no archive", plain.getvalue(), gzip.compress(b"no archive")):
        archive.write_bytes(data)
        with pytest.raises(PackageError, match=r"not an archive of a package.*edgekit pack"):
            unpack(archive, tmp_path / "in.edge")
    with pytest.raises(UsageError, match="cannot be read"):
        unpack(tmp_path / "none", tmp_path / "in.edge")
    pack(tiny_package(tmp_path / "x.edge"), archive, force=True)
    with pytest.raises(StorageError, match="folder does not exist"):
        unpack(archive, tmp_path / "none" / "in.edge")
