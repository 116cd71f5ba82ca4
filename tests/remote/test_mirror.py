"""Local copies of packages in object storage: the same, whole, in step, and there when the storage is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.contents import contents
from edgekit.deliver.archive import pack
from edgekit.errors import (
    EdgekitError,
    IntegrityError,
    PackageError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
)
from edgekit.manifest import File, encode
from edgekit.package import Package
from edgekit.remote.blobs import Blobs
from edgekit.remote.mirror import LARGE_BYTES, Mirror, cache_folder, fetch
from tests.remote.storages import Web, web
from tests.stages import pair
from tests.tiny import WEIGHT, tiny_package

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A folder with a package, one more below, options, and things that are no packages."""
    folder = tmp_path / "bucket"
    (folder / "team").mkdir(parents=True)
    tiny_package(folder / "tiny.edge")
    tiny_package(folder / "team/heavy.edge", weight=WEIGHT * 2)
    (folder / "serve.toml").write_text("[defaults]\nthreads = 1\n")
    (folder / "notes.txt").write_text("not for servers")
    (folder / ".hidden.edge").mkdir()
    return folder


@pytest.fixture(params=["file", "memory", "http"])
def url(request: pytest.FixtureRequest, bucket: Path) -> Iterator[str]:
    """The folder behind each kind of URL."""
    if request.param == "file":
        yield f"file://{bucket}"
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(bucket), "/bucket", recursive=True)
        yield "memory://bucket"
        memory.rm("/bucket", recursive=True)
    else:
        pytest.importorskip("aiohttp", reason="needs aiohttp")
        with web(bucket) as storage:
            yield storage.url


def copied(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_folder_of_packages_is_copied_once(url: str, bucket: Path, tmp_path: Path) -> None:
    told: list[str] = []
    mirror = Mirror(url, cache=tmp_path / "cache", tell=told.append)
    assert mirror.sync() == {}
    assert sorted(told) == [f"fetched {url}/team/heavy.edge", f"fetched {url}/tiny.edge"]
    assert copied(mirror.path) == {n: d for n, d in copied(bucket).items() if n != "notes.txt"}
    for name in ("tiny.edge", "team/heavy.edge"):
        package = Package.open(mirror.path / name)
        for file in package.manifest.all_files():
            package.file(file)
    before = {p: p.stat().st_ino for p in mirror.path.rglob("*")}
    assert Mirror(url, cache=tmp_path / "cache", tell=told.append).sync() == {}
    assert len(told) == 2
    assert {p: p.stat().st_ino for p in mirror.path.rglob("*")} == before


def test_one_package_is_copied(url: str, bucket: Path, tmp_path: Path) -> None:
    path = fetch(f"{url}/team/heavy.edge", cache=tmp_path / "cache")
    assert path.name == "heavy.edge"
    assert copied(path) == copied(bucket / "team/heavy.edge")


@pytest.mark.parametrize("suffix", [".edge.tar", ".edge.tar.gz"])
def test_archives_are_unpacked(url: str, suffix: str, bucket: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"tiny{suffix}"
    pack(Package.open(bucket / "tiny.edge"), archive)
    if url.startswith("memory:"):
        fsspec.filesystem("memory").put_file(str(archive), f"/bucket/packed/{archive.name}")
    else:
        (bucket / "packed").mkdir()
        shutil.copy(archive, bucket / "packed")
    one = fetch(f"{url}/packed/{archive.name}", cache=tmp_path / "cache")
    assert (one.name, copied(one)) == ("tiny.edge", copied(bucket / "tiny.edge"))
    told: list[str] = []
    for _ in range(2):
        mirror = Mirror(f"{url}/packed", cache=tmp_path / "cache", tell=told.append)
        assert mirror.sync() == {}
        assert copied(mirror.path / "tiny.edge") == copied(bucket / "tiny.edge")
    assert told == [f"fetched {url}/packed/{archive.name}"]


def test_a_package_of_stages_comes_whole(bucket: Path, tmp_path: Path) -> None:
    stages = pair(tmp_path)
    stages.path.rename(bucket / "stages.edge")
    path = fetch(f"file://{bucket}/stages.edge", cache=tmp_path / "cache")
    package = Package.open(path)
    assert [s.name for s, _ in package.stages()] == list(stages.stage_names)
    assert set(copied(path)) == set(contents(package))


def test_a_large_package_is_announced_with_what_is_missing_of_it(bucket: Path, tmp_path: Path) -> None:
    package = Package.open(bucket / "tiny.edge")
    with package.edit() as writer:
        writer.write("calibration.json", bytes(LARGE_BYTES))
        writer.commit()
    told: list[str] = []
    Mirror(f"file://{bucket}/tiny.edge", cache=tmp_path / "cache", tell=told.append).start()
    url = f"file://{bucket}/tiny.edge"
    assert told == [f"fetching 50 MB of {url}", f"fetched {url}"]


def test_what_packages_share_is_kept_once(bucket: Path, tmp_path: Path) -> None:
    shutil.copytree(bucket / "tiny.edge", bucket / "again.edge")
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    one, two = (mirror.path / name / "fp32.onnx" for name in ("tiny.edge", "again.edge"))
    assert one.stat().st_ino == two.stat().st_ino


def test_changes_arrive_and_what_is_open_stays(bucket: Path, tmp_path: Path) -> None:
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    with (mirror.path / "tiny.edge/fp32.onnx").open("rb") as served:
        tiny_package(bucket / "tiny.edge", weight=WEIGHT * np.float32(3), force=True)
        (bucket / "tiny.toml").write_text("threads = 1\n")
        shutil.rmtree(bucket / "team/heavy.edge")
        (bucket / "serve.toml").unlink()
        (bucket / "tiny.edge/signature.json").write_text("{}")
        assert mirror.sync() == {}
        kept = {n: d for n, d in copied(bucket).items() if n != "notes.txt"}
        assert copied(mirror.path) == kept
        assert served.read() != kept["tiny.edge/fp32.onnx"]
    (bucket / "tiny.edge/signature.json").unlink()
    assert mirror.sync() == {}
    assert not (mirror.path / "tiny.edge/signature.json").exists()


def test_damage_to_the_copy_heals(bucket: Path, tmp_path: Path) -> None:
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    file = mirror.path / "tiny.edge/fp32.onnx"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"?")  # the blob is the same file
    (mirror.path / "tiny.edge/labels.txt").unlink()
    assert Mirror(f"file://{bucket}", cache=tmp_path / "cache").sync() == {}
    assert copied(mirror.path / "tiny.edge") == copied(bucket / "tiny.edge")


def test_what_no_package_needs_any_more_is_deleted(bucket: Path, tmp_path: Path) -> None:
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    blobs = tmp_path / "cache/blobs"
    count = len(list(blobs.iterdir()))
    shutil.rmtree(bucket / "team/heavy.edge")
    mirror.sync()
    assert len(list(blobs.iterdir())) == count, "another process may just have fetched them"
    Blobs(blobs).prune(unused_s=0.0)
    left = {b.name for b in blobs.iterdir()}
    assert left == {f.sha256 for f in Package.open(bucket / "tiny.edge").manifest.all_files().values()}


def broken(bucket: Path, how: str) -> None:
    """A new version of tiny.edge in which something is wrong."""
    tiny_package(bucket / "tiny.edge", weight=WEIGHT * np.float32(5), force=True)
    model, manifest = bucket / "tiny.edge/fp32.onnx", bucket / "tiny.edge/manifest.json"
    match how:
        case "other bytes":
            model.write_bytes(bytes(model.stat().st_size))
        case "longer":
            model.write_bytes(model.read_bytes() + b"x")
        case "cut off":
            model.write_bytes(model.read_bytes()[:-1])
        case "vanished":
            model.unlink()
        case "manifest changed":
            manifest.write_text(manifest.read_text().replace("fp32.onnx", "fp33.onnx"))
        case "manifest vanished":
            manifest.unlink()
        case "no manifest":
            manifest.write_text("<html>")


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("other bytes", IntegrityError, "'fp32.onnx' in the storage is not the file of its manifest"),
        ("longer", IntegrityError, "'fp32.onnx' in the storage is not the file of its manifest"),
        ("cut off", IntegrityError, "'fp32.onnx' in the storage is not the file of its manifest"),
        ("vanished", RemoteMissingError, "tiny.edge/fp32.onnx' is not there"),
        ("manifest changed", IntegrityError, "its digest does not match"),
        ("manifest vanished", RemoteMissingError, "tiny.edge/manifest.json' is not there"),
        ("no manifest", PackageError, "is not valid JSON"),
    ],
)
def test_a_bad_version_changes_nothing(
    how: str, kind: type[EdgekitError], words: str, bucket: Path, tmp_path: Path
) -> None:
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    before = copied(mirror.path)
    broken(bucket, how)
    for _ in range(2):
        problems = mirror.sync()
        assert list(problems) == ["tiny.edge"]
        assert isinstance(problems["tiny.edge"], kind)
        assert words in str(problems["tiny.edge"])
        assert copied(mirror.path) == before
    Mirror(f"file://{bucket}", cache=tmp_path / "cache").start()  # what was fetched before will do
    with pytest.raises(kind):
        fetch(f"file://{bucket}", cache=tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").rglob(".*"))
    shutil.rmtree(bucket / "tiny.edge")
    tiny_package(bucket / "tiny.edge", weight=WEIGHT * np.float32(5), force=True)
    assert mirror.sync() == {}
    assert copied(mirror.path / "tiny.edge") == copied(bucket / "tiny.edge")


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_bad_is_read_again_only_when_it_changed(packed: bool, bucket: Path, site: Web, tmp_path: Path) -> None:
    shutil.rmtree(bucket / "team")
    good = tmp_path / "good.edge.tar"
    pack(Package.open(bucket / "tiny.edge"), good)
    at = bucket / ("tiny.edge.tar" if packed else "tiny.edge/fp32.onnx")
    data = good.read_bytes() if packed else at.read_bytes()
    if packed:
        shutil.rmtree(bucket / "tiny.edge")
    at.write_bytes(data[:-3000] + bytes(3000) if packed else bytes(len(data)))
    mirror = Mirror(site.url, cache=tmp_path / "cache")
    (first,) = mirror.sync().values()
    read = site.asked.count(f"/{at.relative_to(bucket)}")
    for _ in range(2):
        (again,) = mirror.sync().values()
        assert (type(first), type(again), str(again)) == (IntegrityError, IntegrityError, str(first))
    assert site.asked.count(f"/{at.relative_to(bucket)}") == read
    at.write_bytes(data)
    os.utime(at, (1, 1))
    assert mirror.sync() == {}
    assert Package.open(mirror.path / "tiny.edge").file("fp32.onnx")


def test_a_name_that_leaves_its_folder_is_refused(bucket: Path, tmp_path: Path) -> None:
    package = Package.open(bucket / "tiny.edge")
    for name, words in (("../../escaped", "leaves the package"), ("manifest.json", "none of its files")):
        files = (*package.manifest.files, File(name=name, sha256="0" * 64, bytes=1))
        (bucket / "tiny.edge/manifest.json").write_bytes(encode(msgspec.structs.replace(package.manifest, files=files)))
        with pytest.raises(EdgekitError, match=words):
            fetch(f"file://{bucket}/tiny.edge", cache=tmp_path / "cache")
    files = (File(name="labels.txt", sha256="../../../escaped", bytes=1),)
    (bucket / "tiny.edge/manifest.json").write_bytes(encode(msgspec.structs.replace(package.manifest, files=files)))
    with pytest.raises(PackageError, match="is no SHA-256"):
        fetch(f"file://{bucket}/tiny.edge", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped"))


@pytest.fixture
def site(bucket: Path) -> Iterator[Web]:
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    with web(bucket) as storage:
        yield storage


def test_a_storage_that_denies_is_a_sentence_and_the_copy_stays(site: Web, tmp_path: Path) -> None:
    mirror = Mirror(site.url, cache=tmp_path / "cache")
    mirror.start()
    before = copied(mirror.path)
    site.fails["tiny.edge/manifest.json"] = 403
    problems = mirror.sync()
    assert list(problems) == ["tiny.edge"]
    assert isinstance(problems["tiny.edge"], RemoteDeniedError)
    words = f"'{site.url}/tiny.edge/manifest.json' may not be read: access was denied"
    assert str(problems["tiny.edge"]).startswith(words)
    site.fails[""] = 503
    assert list(mirror.sync()) == [""]
    mirror.start()
    assert copied(mirror.path) == before
    with pytest.raises(RemoteError, match="cannot be read .*503"):
        fetch(site.url, cache=tmp_path / "elsewhere")


def test_a_signature_that_cannot_be_told_from_none_is_none(site: Web, tmp_path: Path) -> None:
    site.fails["signature.json"] = 403
    assert Mirror(site.url, cache=tmp_path / "cache").sync() == {}
    site.fails["signature.json"] = 500
    assert set(Mirror(site.url, cache=tmp_path / "cache").sync()) == {"tiny.edge", "team/heavy.edge"}


def test_a_storage_that_is_not_there(bucket: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    with web(bucket) as site:
        url = site.url
        fetch(url, cache=tmp_path / "cache")
    assert (fetch(url, cache=tmp_path / "cache") / "tiny.edge").is_dir()
    with pytest.raises(RemoteError, match="Cannot connect to host"):
        fetch(url, cache=tmp_path / "elsewhere")
    with pytest.raises(RemoteMissingError, match="nothing' is not there"):
        fetch(f"file://{bucket}/nothing", cache=tmp_path / "elsewhere")


def test_a_folder_that_lost_all_its_packages_is_not_believed(bucket: Path, tmp_path: Path) -> None:
    mirror = Mirror(f"file://{bucket}", cache=tmp_path / "cache")
    mirror.sync()
    before = copied(mirror.path)
    for name in ("tiny.edge", "team"):
        shutil.rmtree(bucket / name)
    assert "holds no package" in str(mirror.sync()[""])
    assert copied(mirror.path) == before


def test_a_cache_that_cannot_be_written_is_a_sentence(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EdgekitError, match="was not written: its parent is not a folder"):
        fetch(f"file://{bucket}", cache=tmp_path / "cache")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value, place in (
        ("HOME", tmp_path / "home", tmp_path / "home/.cache/edgekit/remote"),
        ("XDG_CACHE_HOME", tmp_path / "xdg", tmp_path / "xdg/edgekit/remote"),
        ("EDGEKIT_CACHE", tmp_path / "own", tmp_path / "own/remote"),
    ):
        monkeypatch.delenv("EDGEKIT_CACHE", raising=False)
        if name == "HOME":
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(name, str(value))
        assert cache_folder() == place
