from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BackendError, InputError, MissingDependencyError, PackageError, UsageError
from edgekit.package import Package
from edgekit.runtime.devices import Place
from edgekit.runtime.fake import FakeSession
from edgekit.runtime.machine import Machine, look
from edgekit.runtime.select import candidates, choose, not_runnable, open_best, open_session, runnable
from edgekit.runtime.session import Session
from edgekit.tensors import TensorSpec
from edgekit.verify import verify
from tests.tiny import tiny_model


def add(package: Package, name: str, precision: str, **fields: object) -> Package:
    with package.edit() as writer:
        writer.path(f"{name}.bin").write_bytes(tiny_model().SerializeToString())
        values = {"format": "onnx", "target": "any", **fields}
        writer.put(writer.variant_of(f"{name}.bin", id=name, precision=precision, **values))
        return writer.commit()


def test_int8_is_preferred_on_a_cpu_and_the_choice_explained(tiny: Package) -> None:
    choice = choose(tiny)
    assert choice.variant.id == "int8"
    assert "ONNX Runtime on the CPU" in choice.reason
    assert choose(tiny, "fp32").reason == "asked for"


@pytest.mark.parametrize("mark", ["over_budget", "not_faster"])
def test_a_variant_that_does_not_pay_is_not_chosen(tiny: Package, mark: str) -> None:
    assert choose(add(tiny, "int8", "int8", settings={mark: True})).variant.id == "fp32"


def test_engines_and_tensorrt_forms_are_not_run_on_a_cpu(tiny: Package) -> None:
    package = add(add(tiny, "int8-trt", "int8-trt"), "engine", "fp16", format="tensorrt", target="sm87-trt10.3")
    assert {v.id for v in runnable(package)} == {"fp32", "int8"}
    with pytest.raises(
        UsageError, match=r"cannot run variant 'engine': engine 'engine' needs an NVIDIA GPU \(sm87-trt10.3\)"
    ):
        choose(package, "engine")


def test_open_session_takes_a_path(tiny: Package, tmp_path: Path) -> None:
    with open_session(str(tiny.path), variant="fp32", threads=1) as session:
        assert session.run({"x": np.ones((2, 4), np.float32)})["scores"].shape == (2, 3)
    with pytest.raises(PackageError, match="does not exist. Make one with"):
        open_session(tmp_path / "none.edge")


def test_open_session_runs_the_choice(tiny: Package) -> None:
    with open_session(tiny, variant="fp32", threads=1) as session:
        assert session.variant == "fp32"
        assert session.run({"x": np.ones((2, 4), np.float32)})["scores"].shape == (2, 3)


def test_a_fake_session_is_a_session() -> None:
    spec = TensorSpec("x", "float32", ("batch",))
    fake = FakeSession([spec], [spec], lambda feed: {"x": feed["x"] + 1})
    assert isinstance(fake, Session)
    with fake as session:
        np.testing.assert_array_equal(session.run({"x": np.zeros(2, np.float32)})["x"], [1, 1])
        with pytest.raises(InputError):
            session.run({"y": np.zeros(2, np.float32)})
        fake.fail = BackendError("out of memory")
        with pytest.raises(BackendError, match="out of memory"):
            session.run({"x": np.zeros(2, np.float32)})
    assert fake.calls == 2
    with pytest.raises(BackendError, match="closed"):
        fake.run({"x": np.zeros(2, np.float32)})


ORIN = Machine(
    Place("cuda", 0), "Orin", 87, onnx_cuda=True, tensorrt={"tensorrt": "10.3.0.30"}, missing={"tensorrt-rtx": "no"}
)


def engine(package: Package, name: str, *, target: str = "sm87-trt10.3", **settings: object) -> Package:
    settings = {"version": "10.3.0.30", **settings}
    precision = name.partition("-")[0]
    return add(package, name, precision, format="tensorrt", target=target, settings=settings)


def test_an_engine_for_this_gpu_and_this_tensorrt_comes_first(tiny: Package) -> None:
    package = engine(engine(tiny, "fp16-engine"), "int8-other", target="sm86-trt10.3")
    choice = choose(package, machine=ORIN)
    assert (choice.variant.id, choice.device) == ("fp16-engine", "cuda:0")
    assert choice.reason == "engine built for this GPU (Orin, sm_87) and TensorRT 10.3.0.30"
    assert [c.variant.id for c in candidates(package, machine=ORIN)] == ["fp16-engine", "fp32", "int8"]
    assert [c.device for c in candidates(package, machine=ORIN)] == ["cuda:0", "cuda:0", "cpu"]


def test_int8_engines_are_preferred_unless_they_do_not_pay(tiny: Package) -> None:
    package = engine(engine(tiny, "fp16-engine"), "int8-engine")
    assert choose(package, machine=ORIN).variant.id == "int8-engine"
    package = engine(package, "int8-engine", over_budget=True)
    assert choose(package, machine=ORIN).variant.id == "fp16-engine"


@pytest.mark.parametrize(
    ("fields", "machine", "clause"),
    [
        ({"target": "sm86-trt10.3"}, ORIN, "is for sm_86 and this GPU is sm_87"),
        ({"version": "10.13.0.1"}, ORIN, "is for TensorRT 10.13 and 10.3 is installed"),
        ({"options": {"strip": True}}, ORIN, "has no weights in it"),
        (
            {},
            replace(ORIN, tensorrt={}, missing={"tensorrt": "tensorrt is not installed"}),
            "tensorrt is not installed",
        ),
        ({}, Machine(), "needs an NVIDIA GPU"),
    ],
)
def test_an_engine_that_is_not_for_this_machine_is_left_out_and_named(
    tiny: Package, fields: dict[str, object], machine: Machine, clause: str
) -> None:
    package = engine(tiny, "fp16-engine", **fields)  # type: ignore[arg-type]
    choice = choose(package, machine=machine)
    assert choice.variant.format == "onnx"
    if machine.gpu:
        assert clause in choice.reason
        assert "ONNX Runtime with CUDA on Orin" in choice.reason
    with pytest.raises(UsageError, match=clause):
        choose(package, "fp16-engine", machine=machine)
    assert "fp16-engine" not in [v.id for v in runnable(package, machine=machine)]


def test_engines_that_were_built_to_travel(tiny: Package) -> None:
    package = engine(tiny, "fp16-a", target="sm80-trt10.3", options={"hardware": "ampere+"})
    assert choose(package, machine=ORIN).variant.id == "fp16-a"
    newer = replace(ORIN, tensorrt={"tensorrt": "10.16.0.1"})
    package = engine(package, "fp16-b", options={"version_compatible": True})
    assert choose(package, machine=newer).variant.id == "fp16-b"


def test_on_a_gpu_without_its_onnx_runtime_the_cpu_runs_and_the_wheel_is_named(tiny: Package) -> None:
    choice = choose(tiny, machine=replace(ORIN, onnx_cuda=False))
    assert (choice.variant.id, choice.device) == ("int8", "cpu")
    assert "Orin is not used by ONNX Runtime: pip install 'edgekit[gpu]'" in choice.reason


def test_a_device_that_is_asked_for_is_kept_to(tiny: Package) -> None:
    assert choose(tiny, device="cpu", machine=ORIN).variant.id == "int8"
    assert choose(tiny, device="cuda:1", machine=ORIN).device == "cuda:1"
    with pytest.raises(UsageError, match="cuda:0 does not exist; no NVIDIA GPU"):
        choose(tiny, device="cuda", machine=Machine())
    with pytest.raises(UsageError, match=r"on cuda:0 \(Orin is not used.*\. Compile an engine there: edgekit compile"):
        choose(tiny, device="cuda:0", machine=replace(ORIN, onnx_cuda=False))
    other = engine(tiny, "fp16-engine", target="sm86-trt10.3")
    with pytest.raises(UsageError, match=r"is for sm_86 and this GPU is sm_87; Orin is not used by ONNX Runtime: pip"):
        choose(other, device="cuda:0", machine=replace(ORIN, onnx_cuda=False))


def test_a_variant_that_is_asked_for_goes_where_it_runs_best(tiny: Package) -> None:
    assert [c.device for c in candidates(tiny, "fp32", machine=ORIN)] == ["cuda:0", "cpu"]
    assert [c.device for c in candidates(tiny, "int8", machine=ORIN)] == ["cpu"]
    assert [c.device for c in candidates(tiny, "fp32", device="cpu", machine=ORIN)] == ["cpu"]


def test_what_does_not_load_is_replaced_with_a_warning_that_names_the_fix(
    tiny: Package, caplog: pytest.LogCaptureFixture
) -> None:
    if look().gpu:
        pytest.skip("needs a machine without a GPU")
    package = engine(tiny, "fp16-engine")
    session, choice = open_best(package, machine=ORIN, threads=1)
    with session:
        assert session.run({"x": np.ones((2, 4), np.float32)})["scores"].shape == (2, 3)
        assert "CPU" in session.device
    assert choice.device == "cpu"
    assert choice.reason.endswith("'fp16-engine' did not load; 'fp32' did not load")
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 2
    assert warned[0].startswith("Variant 'fp16-engine' is not used: ")
    assert warned[1].startswith("Variant 'fp32' is not used: ")
    assert all("Run: pip" in w or "Install" in w for w in warned)


def test_an_engine_that_was_asked_for_fails_and_is_not_replaced(tiny: Package) -> None:
    if look().gpu:
        pytest.skip("needs a machine without a GPU")
    with pytest.raises((BackendError, MissingDependencyError)):
        open_session(engine(tiny, "fp16-engine"), variant="fp16-engine", machine=ORIN)


def test_a_board_without_onnx_runtime_runs_its_engines_alone(tiny: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """`edgekit[jetson]` installs none."""
    package = engine(tiny, "fp16-engine")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    bare = replace(ORIN, onnx_cuda=False)
    assert [c.variant.id for c in candidates(package, machine=bare)] == ["fp16-engine"]
    assert [v.id for v in runnable(package, machine=bare)] == ["fp16-engine"]
    reasons = not_runnable(package, machine=bare)
    assert reasons == dict.fromkeys(("fp32", "int8"), "ONNX Runtime is not installed")
    with pytest.raises(MissingDependencyError, match=r"onnxruntime is needed to run ONNX models .*edgekit\[cpu\]"):
        choose(package, machine=Machine())
    report = verify(package)
    assert not report.passed
    assert set(report.skipped) == {"fp32", "int8", "fp16-engine"}
