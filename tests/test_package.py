from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.errors import IntegrityError, PackageError, StorageError, UsageError
from edgekit.manifest import SCHEMA
from edgekit.package import Package, create
from tests.tiny import WEIGHT, tiny_manifest, tiny_model, tiny_package


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_what_was_written_is_read_back(tiny: Package) -> None:
    again = Package.open(tiny.path)
    assert again.name == "tiny"
    assert [v.id for v in again.manifest.variants] == ["fp32", "int8"]
    assert again.labels() == ("red", "green", "blue")
    samples = again.samples()
    assert samples.count == 16
    np.testing.assert_allclose(samples.inputs["x"] @ WEIGHT, samples.outputs["scores"], rtol=1e-6)
    assert again.model_file(again.reference).name == "fp32.onnx"
    assert not leftovers(tiny.path.parent)


def test_adding_a_variant_keeps_everything_else(tiny: Package) -> None:
    before = tree(tiny.path)
    tiny.write_report("bench.json", b"{}")
    with tiny.edit() as writer:
        writer.path("fp16.onnx").write_bytes(tiny_model().SerializeToString())
        writer.put(writer.variant_of("fp16.onnx", id="fp16", precision="fp16", format="onnx", target="any"))
        after = writer.commit()
    assert [v.id for v in after.manifest.variants] == ["fp32", "int8", "fp16"]
    now = tree(tiny.path)
    assert set(now) == {*before, "fp16.onnx", "reports/bench.json"}
    assert all(now[name] == before[name] for name in before if name != "manifest.json")


def test_replacing_a_variant_replaces_its_file(tiny: Package) -> None:
    held = (tiny.path / "int8.onnx").open("rb")
    with held, tiny.edit() as writer:
        writer.path("int8.onnx").write_bytes(tiny_model(WEIGHT * 2).SerializeToString())
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        after = writer.commit()
        assert held.read() == tiny_model().SerializeToString(), "a reader of the old file is not disturbed"
    assert after.model_file(after.variant("int8")).read_bytes() == tiny_model(WEIGHT * 2).SerializeToString()


def test_removing_a_variant_removes_its_file(tiny: Package) -> None:
    with tiny.edit() as writer:
        writer.remove("int8")
        writer.commit()
    assert not (tiny.path / "int8.onnx").exists()


def test_leaving_without_commit_changes_nothing(tiny: Package) -> None:
    before = tree(tiny.path)
    with pytest.raises(RuntimeError, match="stop"), tiny.edit() as writer:  # noqa: PT012
        writer.path("fp16.onnx").write_bytes(b"half a model")
        raise RuntimeError("stop")
    assert tree(tiny.path) == before
    assert not leftovers(tiny.path.parent)


def test_external_data_is_part_of_the_variant(tmp_path: Path) -> None:
    with create(tmp_path / "big.edge") as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model().SerializeToString())
        writer.path("fp32.onnx.data").write_bytes(b"weights")
        variant = writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any")
        writer.put(variant)
        package = writer.commit(tiny_manifest("big"))
    assert variant.bytes == len(tiny_model().SerializeToString()) + 7
    package.model_file(variant)
    (package.path / "fp32.onnx.data").write_bytes(b"weighty")
    with pytest.raises(IntegrityError, match=r"fp32\.onnx\.data"):
        Package.open(package.path).model_file(variant)


@pytest.mark.parametrize("name", ["fp32.onnx", "samples.npz", "labels.txt"])
def test_one_changed_byte_is_refused_by_name(tiny: Package, name: str) -> None:
    file = tiny.path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=f"'{name}' in 'tiny.edge' was changed"):
        Package.open(tiny.path).file(name)


def test_a_file_changed_after_its_check_is_checked_again(tiny: Package) -> None:
    tiny.file("labels.txt")
    (tiny.path / "labels.txt").write_text("red\ngreen\nblack\n")
    with pytest.raises(IntegrityError, match="labels.txt"):
        tiny.file("labels.txt")


def test_a_missing_file_is_refused_by_name(tiny: Package) -> None:
    (tiny.path / "fp32.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"lacks its file 'fp32\.onnx'"):
        tiny.file("fp32.onnx")


def test_every_changed_byte_of_the_manifest_is_refused(tiny: Package) -> None:
    file = tiny.path / "manifest.json"
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bytes(bad))
        with pytest.raises(PackageError):
            Package.open(tiny.path)
    file.write_bytes(good)
    Package.open(tiny.path)


def test_a_newer_schema_is_refused_with_advice(tiny: Package) -> None:
    file = tiny.path / "manifest.json"
    document = json.loads(file.read_text())
    document["schema"] = SCHEMA + 1
    document["something_new"] = True
    file.write_text(json.dumps(document))
    with pytest.raises(PackageError, match=f"schema {SCHEMA + 1}.*Upgrade edgekit"):
        Package.open(tiny.path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[]", "no schema"), (b'{"schema": 1}', "does not fit")],
)
def test_a_damaged_manifest_is_one_sentence(tiny: Package, content: bytes, words: str) -> None:
    (tiny.path / "manifest.json").write_bytes(content)
    with pytest.raises(PackageError, match=words):
        Package.open(tiny.path)


def test_what_is_not_a_package_is_said(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        Package.open(tmp_path / "none.edge")
    with pytest.raises(PackageError, match="not an edgekit package"):
        Package.open(tmp_path)
    (tmp_path / "file.edge").write_text("x")
    with pytest.raises(PackageError, match="not an edgekit package"):
        Package.open(tmp_path / "file.edge")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..", "a\\b", "x\0y", ""])
def test_no_file_name_leaves_the_package(tiny: Package, name: str) -> None:
    with pytest.raises(PackageError), tiny.edit() as writer:
        writer.path(name)
    with pytest.raises(PackageError):
        tiny.write_report(name, b"x")


def test_a_manifest_cannot_point_outside(tiny: Package) -> None:
    secret = tiny.path.parent / "secret"
    secret.write_text("secret")
    entry = tiny.manifest.files[0]
    evil = msgspec.structs.replace(tiny.manifest, files=(msgspec.structs.replace(entry, name="../secret"),))
    with pytest.raises(PackageError, match="leaves the package"):
        Package(tiny.path, evil).file("../secret")


def test_an_existing_package_needs_force(tiny: Package) -> None:
    before = tree(tiny.path)
    with pytest.raises(UsageError, match="--force"):
        create(tiny.path)
    assert tree(tiny.path) == before
    tiny_package(tiny.path, weight=WEIGHT * 3, force=True)
    assert tree(tiny.path) != before


def test_force_never_replaces_what_is_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "photos.edge").mkdir()
    (tmp_path / "photos.edge" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a package"):
        create(tmp_path / "photos.edge", force=True)
    with pytest.raises(UsageError, match=r"NAME\.edge"):
        create(tmp_path / "model")


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="folder does not exist"):
        tiny_package(tmp_path / "none" / "x.edge")


def test_a_parent_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="not a folder"):
        tiny_package(tmp_path / "file" / "x.edge")


def _fill_the_disk(path: Path, out: multiprocessing.Queue[str]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    package = Package.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        with package.edit() as writer:
            writer.path("fp16.onnx").write_bytes(bytes(100_000))
        out.put("written")
    except StorageError as error:
        out.put(str(error))


def test_a_disk_that_fills_leaves_the_package_as_it_was(tiny: Package) -> None:
    before = tree(tiny.path)
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=_fill_the_disk, args=(tiny.path, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert "was not written" in message
    assert tree(tiny.path) == before
    assert not leftovers(tiny.path.parent)


def test_a_concurrent_change_is_not_overwritten(tiny: Package) -> None:
    with tiny.edit() as slow:
        with Package.open(tiny.path).edit() as quick:
            quick.remove("int8")
            quick.commit()
        with pytest.raises(UsageError, match="changed by another command"):
            slow.commit()
    assert [v.id for v in Package.open(tiny.path).manifest.variants] == ["fp32"]


def test_a_package_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with create(tmp_path / "x.edge") as slow:
        slow.path("fp32.onnx").write_bytes(b"late")
        slow.put(slow.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        early = tiny_package(tmp_path / "x.edge")
        with pytest.raises(UsageError, match="meanwhile"):
            slow.commit(tiny_manifest("late"))
    assert Package.open(early.path).name == "tiny"


REWRITER = """
import sys, itertools
from edgekit.package import Package
from tests.tiny import tiny_model, WEIGHT
print("go", flush=True)
for i in itertools.count():
    with Package.open(sys.argv[1]).edit() as writer:
        writer.path("int8.onnx").write_bytes(tiny_model(WEIGHT * (1 + i % 7)).SerializeToString() + b"")
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        writer.commit()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_leaves_a_whole_package(tiny: Package, how: signal.Signals) -> None:
    for delay_s in (0.0, 0.003, 0.011, 0.017, 0.029):
        with subprocess.Popen(
            [sys.executable, "-c", REWRITER, str(tiny.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parent.parent,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            time.sleep(delay_s)
            process.send_signal(how)
            process.wait()
        package = Package.open(tiny.path)
        for name in package.manifest.all_files():
            package.file(name)
    with package.edit() as writer:  # the next command clears what a killed one left
        writer.commit()
    assert not leftovers(tiny.path.parent)


def test_opening_many_readers_while_one_writes_never_sees_a_half_package(tiny: Package) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", REWRITER, str(tiny.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            manifests = {Package.open(tiny.path).manifest.digest for _ in range(300)}
        finally:
            process.kill()
    assert len(manifests) >= 1


def test_a_package_behind_a_link_is_changed_in_place(tiny: Package) -> None:
    link = tiny.path.with_name("link.edge")
    link.symlink_to(tiny.path)
    with Package.open(link).edit() as writer:
        writer.remove("int8")
        writer.commit()
    assert link.is_symlink()
    assert [v.id for v in Package.open(tiny.path).manifest.variants] == ["fp32"]


def test_unknown_variants_are_answered_with_the_known_ones(tiny: Package) -> None:
    with pytest.raises(UsageError, match="it has fp32, int8"):
        tiny.variant("int4")


def test_new_packages_honour_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        package = tiny_package(tmp_path / "tiny.edge")
    finally:
        os.umask(before)
    assert package.path.stat().st_mode & 0o777 == 0o755
    assert (package.path / "manifest.json").stat().st_mode & 0o777 == 0o644
