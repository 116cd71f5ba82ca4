"""Run by test_trt.py in a process of its own: shapes, and tensors on the host and on the stub's GPU."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BackendError, InputError
from edgekit.runtime.dlpack import CUDA, DeviceTensor
from tests.runtime.on_stub import fake_trt
from tests.runtime.on_stub.driver import Stub
from tests.runtime.on_stub.sessions import on_gpu, rows, session

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_zero_copy_on_shared_memory_copies_nothing(stub: Stub) -> None:
    stub.machine(shares_memory=True)
    with session() as s:
        np.testing.assert_array_equal(s.run(rows(2))["y"], np.full((2, 3), 4.0))
        assert [c for c in stub.calls() if "cuMemcpy" in c] == []
        assert "cuMemHostAlloc 256 flags 3" in stub.calls()
    stub.machine(shares_memory=True)
    with session(zero_copy=False) as s:
        stub.clear()
        s.run(rows(2))
        assert len([c for c in stub.calls() if "cuMemcpy" in c]) == 2


def test_the_profile_tuned_for_the_nearest_shape_is_used() -> None:
    with session(slots=1, graphs=False) as s:
        for count in (1, 30, 30, 2):
            s.run(rows(count))
        assert [e for e in fake_trt.events if e.startswith("profile")] == ["profile 0", "profile 1", "profile 0"]


def test_shapes_outside_the_profiles_never_reach_the_gpu(stub: Stub) -> None:
    with session() as s:
        stub.clear()
        for count in (0, 33):
            with pytest.raises(
                InputError, match=rf"got \({count},4\), engine 'fp16' accepts \(1\.\.8,4\) or \(1\.\.32,4\)"
            ):
                s.run(rows(count))
        with pytest.raises(InputError, match="accepts"):
            s.run({"x": np.zeros((1, 5), np.float32)})
        assert stub.calls() == []
        s.run(rows(1))


def test_results_are_the_callers_own() -> None:
    with session(slots=1) as s:
        results = [s.run(rows(1, float(i)))["y"] for i in range(5)]
    assert [float(r[0, 0]) for r in results] == [0.0, 4.0, 8.0, 12.0, 16.0]


def test_an_output_sized_by_values(stub: Stub) -> None:
    facts = {"inputs": {"x": [[6]]}, "outputs": {"y": ["found"]}}
    with session("nonzero", facts) as s:
        for values in ([0, 1, 1, 0, 0, 1], [1] * 6, [0] * 6, [0, 0, 0, 0, 0, 1]):
            got = s.run({"x": np.asarray(values, np.float32)})["y"]
            np.testing.assert_array_equal(got, np.flatnonzero(values))
        with pytest.raises(BackendError, match=r"'y' \(y_0\) depends on values\. Use run\(\)"):
            s.run_device({"x": on_gpu(np.ones(6, np.float32))})


def test_a_shape_tensor_stays_on_the_host(stub: Stub) -> None:
    facts = {
        "inputs": {"x": [[6]], "n": [[1]]},
        "outputs": {"y": [6]},
        "types": {"n": "int64"},
        "on_host": ["n"],
    }
    with session("double", facts, slots=1) as s:
        stub.clear()
        for i in range(4):
            feed = {"x": np.full(6, i, np.float32), "n": np.array([i], np.int64)}
            np.testing.assert_array_equal(s.run(feed)["y"], np.full(6, 2 * i))
        assert stub.calls("cuMemcpyHtoDAsync", "cuStreamBeginCapture") == ["cuMemcpyHtoDAsync s1 24"] * 4


def test_tensors_of_no_dimension_and_of_none_at_all() -> None:
    facts = {"inputs": {"x": [[]]}, "outputs": {"y": []}}
    with session("double", facts) as s:
        for value in (1.5, 2.5, 3.5):
            got = s.run({"x": np.asarray(value, np.float32)})["y"]
            assert got.shape == ()
            assert got == 2 * value


def test_tensors_on_the_gpu_are_used_where_they_are(stub: Stub) -> None:
    x = np.full((3, 4), 2.0, np.float32)
    with session(slots=1, graphs=False) as s:
        s.run(rows(3))
        stub.clear()
        y = s.run_device({"x": on_gpu(x)})["y"]
        assert [c for c in stub.calls() if "cuMemcpy" in c] == []
        assert y.__dlpack_device__() == (CUDA, 0)
        host = DeviceTensor(y.address, y.dtype, y.shape, device=(1, 0))
        np.testing.assert_array_equal(np.from_dlpack(host), np.full((3, 3), 8.0))
        first = y.address
        y.close()
        again = s.run_device({"x": on_gpu(x)})["y"]
        assert again.address == first
        again.close()
        np.testing.assert_array_equal(s.run(rows(3, 5.0))["y"], np.full((3, 3), 20.0))


def test_tensors_elsewhere_are_refused() -> None:
    with session() as s:
        with pytest.raises(InputError, match="'x' is not on cuda:0"):
            s.run_device({"x": np.ones((1, 4), np.float32)})
        with pytest.raises(InputError, match="'x' is not on cuda:0"):
            s.run_device({"x": on_gpu(np.ones((1, 4), np.float32), (CUDA, 1))})
        with pytest.raises(InputError, match="'x' is missing"):
            s.run_device({})
        with pytest.raises(InputError, match="got int64"):
            s.run_device({"x": on_gpu(np.ones((1, 4), np.int64))})
        with pytest.raises(InputError, match="accepts"):
            s.run_device({"x": on_gpu(np.ones((99, 4), np.float32))})
