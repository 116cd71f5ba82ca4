from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BackendError, InputError, UsageError
from edgekit.package import Package
from edgekit.runtime.fake import FakeSession
from edgekit.runtime.select import choose, open_session, runnable
from edgekit.runtime.session import Session
from edgekit.tensors import TensorSpec
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
    with pytest.raises(UsageError, match="a tensorrt engine for sm87-trt10.3"):
        choose(package, "engine")


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
