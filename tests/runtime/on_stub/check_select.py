"""Run by test_machine.py in a process of its own: a package with engines on a machine whose GPU is the stub."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BackendError, ModelError, UsageError
from edgekit.gpu import this_gpu
from edgekit.package import Package
from edgekit.runtime.machine import look
from edgekit.runtime.placed import all_gpus, open_placed
from edgekit.runtime.select import choose, open_best, open_session, runnable
from tests.runtime.on_stub import fake_trt
from tests.runtime.on_stub.driver import Stub
from tests.tiny import tiny_package

X = np.ones((2, 4), np.float32)


@pytest.fixture(autouse=True)
def _tensorrt(monkeypatch: pytest.MonkeyPatch, stub: Stub) -> None:
    fake_trt.__spec__.name = "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt)
    fake_trt.refuse.clear()


def with_engine(path: Path, data: bytes, **settings: object) -> Package:
    with tiny_package(path).edit() as writer:
        writer.path("engines/a.engine").write_bytes(data)
        fields = {"version": fake_trt.__version__, **settings}
        variant = writer.variant_of(
            "engines/a.engine",
            id="fp16-a",
            precision="fp16",
            format="tensorrt",
            target="sm87-trt10.16",
            settings=fields,
        )
        writer.put(variant)
        return writer.commit()


def engine() -> bytes:
    return fake_trt.engine(outputs={"scores": ["batch", 3]})


def test_the_machine_is_seen(stub: Stub) -> None:
    gpu = this_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.sm) == ("Stub GPU 0", 87)
    here = look(engines=True)
    assert (here.gpu, here.sm, dict(here.tensorrt)["tensorrt"]) == ("Stub GPU 0", 87, "10.16.0")
    stub.machine(gpus=0)


def test_an_engine_of_the_package_runs(tmp_path: Path) -> None:
    package = with_engine(tmp_path / "t.edge", engine())
    choice = choose(package)
    assert choice.reason == "engine built for this GPU (Stub GPU 0, sm_87) and TensorRT 10.16.0"
    assert {v.id for v in runnable(package)} == {"fp32", "int8", "fp16-a"}
    with open_session(package) as session:
        assert session.device == "TensorRT 10.16.0, Stub GPU 0 (cuda:0), 2 slots"
        assert [str(s) for s in session.inputs] == ["x: float32[batch, 4]"]
        assert [str(s) for s in session.outputs] == ["scores: float32[batch, 3]"]
        np.testing.assert_array_equal(session.run({"x": X})["scores"], np.full((2, 3), 4.0))
    with open_session(package, device="cpu", threads=1) as session:
        assert "CPU" in session.device


def test_an_engine_that_the_runtime_refuses_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = with_engine(tmp_path / "t.edge", fake_trt.engine(version="10.16.9"))
    session, choice = open_best(package, threads=1)
    with session:
        assert session.run({"x": X})["scores"].shape == (2, 3)
    assert choice.variant.id == "int8"
    assert "'fp16-a' did not load" in choice.reason
    assert "'fp16-a' is not used: TensorRT 10.16.0 cannot load engine 'fp16-a': it was built by another" in caplog.text
    assert "edgekit compile X.edge --target this" in caplog.text
    with pytest.raises(ModelError, match="damaged"):
        open_session(with_engine(tmp_path / "u.edge", engine()[:9]), variant="fp16-a")


def test_a_changed_byte_is_an_integrity_error_and_no_fallback(tmp_path: Path) -> None:
    package = with_engine(tmp_path / "t.edge", engine())
    file = package.path / "engines" / "a.engine"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"matmul", b"double"))
    with pytest.raises(Exception, match="SHA-256 does not match"):
        open_session(Package.open(package.path))


def test_code_in_an_engine_runs_where_the_manifest_says_that_it_was_compiled_so(tmp_path: Path) -> None:
    code = fake_trt.engine(outputs={"scores": ["batch", 3]}, carries_code=True)
    package = with_engine(tmp_path / "a.edge", code, options={"version_compatible": True})
    with open_session(package, variant="fp16-a") as session:
        assert session.run({"x": X})["scores"].shape == (2, 3)
    with pytest.raises(BackendError, match="version-compatible and carries code of its own"):
        open_session(with_engine(tmp_path / "b.edge", code), variant="fp16-a")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"version": "10.3.0"},
            "is for TensorRT 10.3 and 10.16 is installed. Build it on this machine: edgekit compile",
        ),
        (
            {"version": "10.18.0", "options": {"version_compatible": True}},
            "is for TensorRT 10.18 and 10.16 is installed. Build it on this machine",
        ),
        ({"options": {"strip": True}}, "has no weights in it (--strip). Compile it without --strip"),
    ],
)
def test_an_engine_that_does_not_fit_is_passed_over_with_a_warning_that_names_the_fix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object], words: str
) -> None:
    session, choice = open_best(with_engine(tmp_path / "t.edge", engine(), **settings), threads=1)
    with session:
        assert choice.variant.format == "onnx"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert words in caplog.text


def test_several_gpus_share_the_runs_of_one_package(tmp_path: Path, stub: Stub) -> None:
    stub.machine(gpus=2)
    package = with_engine(tmp_path / "t.edge", engine())
    assert all_gpus() == ("cuda:0", "cuda:1")
    opened = open_placed(package, devices=all_gpus())
    with opened.session as session:
        assert session.device == (
            "TensorRT 10.16.0, Stub GPU 0 (cuda:0), 2 slots; TensorRT 10.16.0, Stub GPU 1 (cuda:1), 2 slots"
        )
        for _ in range(3):
            np.testing.assert_array_equal(session.run({"x": X})["scores"], np.full((2, 3), 4.0))
    with pytest.raises(UsageError, match="Device cuda:2 does not exist; this machine has cuda:0 to cuda:1"):
        open_placed(package, devices=("cuda:0", "cuda:2"))
    stub.machine()
