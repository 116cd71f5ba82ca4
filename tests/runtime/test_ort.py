from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import (
    BackendError,
    InputError,
    MissingDependencyError,
    ModelError,
    UnsupportedOperatorError,
    UsageError,
)
from edgekit.runtime.ort import OrtSession, physical_cores
from edgekit.runtime.session import Session
from tests.data import data_path
from tests.tiny import WEIGHT, tiny_model


def test_a_model_runs_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)
    (tmp_path / "m.onnx").write_bytes(tiny_model().SerializeToString())
    for source in (tiny_model().SerializeToString(), tmp_path / "m.onnx"):
        with OrtSession(source, threads=1) as session:
            assert isinstance(session, Session)
            np.testing.assert_allclose(session.run({"x": x})["scores"], WEIGHT)
            assert "CPU, 1 thread" in session.device


def test_inputs_are_checked_before_the_runtime_sees_them() -> None:
    with OrtSession(tiny_model().SerializeToString()) as session, pytest.raises(InputError, match="accepts"):
        session.run({"x": np.zeros((1, 9), np.float32)})


def test_a_closed_session_says_so() -> None:
    session = OrtSession(tiny_model().SerializeToString())
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("data", [b"garbage", tiny_model().SerializeToString()[:40]])
def test_a_damaged_model_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"cannot load 'broken\.onnx'"):
        OrtSession(tmp_path / "broken.onnx")


def test_custom_operators_are_refused_by_name() -> None:
    path = data_path("sr_espcn_x3/superres_x3_with_custom_pre_post_op18.onnx")
    with pytest.raises(UnsupportedOperatorError, match="DecodeImage|EncodeImage|extensions"):
        OrtSession(path)


@pytest.mark.parametrize("bind", [False, True])
def test_several_threads_share_a_session(bind: bool) -> None:
    """Those of a bound session get buffers of their own."""
    wrong: list[int] = []
    with OrtSession(tiny_model().SerializeToString(), threads=1, bind=bind) as session:

        def work(seed: int) -> None:
            x = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
            for _ in range(50):
                if not np.allclose(session.run({"x": x})["scores"], x @ WEIGHT, atol=1e-5):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_unnamed_dimensions_are_free() -> None:
    with OrtSession(data_path("style_fns/candy.onnx")) as session:
        assert session.inputs[0].shape == ("inputImage_0", 3, 720, 720)


def test_there_is_at_least_one_core() -> None:
    assert physical_cores() >= 1


def test_a_gpu_without_its_wheel_names_the_wheel() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(MissingDependencyError, match=r"edgekit\[gpu\]"):
        OrtSession(tiny_model().SerializeToString(), device="cuda:0")


def test_what_only_a_gpu_has_is_refused_on_the_cpu() -> None:
    with pytest.raises(UsageError, match="graphs= needs a GPU"):
        OrtSession(tiny_model().SerializeToString(), graphs=True)
    with pytest.raises(UsageError, match="expected cpu, cuda"):
        OrtSession(tiny_model().SerializeToString(), device="tpu")
