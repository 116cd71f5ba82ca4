"""Run by test_trt.py in a process of its own: sessions on a module like TensorRT and a stub of the CUDA driver."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BackendError, InputError, ModelError, UsageError
from edgekit.runtime.dlpack import CUDA, DeviceTensor
from edgekit.runtime.session import Session
from edgekit.runtime.trt import TrtSession
from edgekit.tensors import TensorSpec
from tests.runtime.on_stub import fake_trt
from tests.runtime.on_stub.driver import Stub

WORK = ("cuMemcpyHtoDAsync", "cuLaunchHostFunc", "cuMemcpyDtoHAsync", "cuGraphLaunch", "cuStreamSynchronize")


@pytest.fixture(autouse=True)
def _fresh(stub: Stub) -> Iterator[None]:
    fake_trt.events.clear()
    fake_trt.refuse.clear()
    before = stub.live
    yield
    assert stub.live == before, "a session left memory, streams or graphs behind"


def session(does: str = "matmul", facts: dict[str, Any] | None = None, **options: Any) -> TrtSession:
    return TrtSession(fake_trt.engine(does, **(facts or {})), module=fake_trt, variant="fp16", **options)


def rows(count: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 4), value, np.float32)}


def test_it_is_a_session_and_says_where_it_runs() -> None:
    with session(inputs=(TensorSpec("x", "float32", ("batch", 4)),)) as s:
        assert isinstance(s, Session)
        assert [str(i) for i in s.inputs] == ["x: float32[batch, 4]"]
        assert [str(o) for o in s.outputs] == ["y: float32[y_0, 3]"]
        assert s.device == "TensorRT 10.16.0, Stub GPU 0 (cuda:0), 2 slots"
        np.testing.assert_array_equal(s.run(rows(2))["y"], np.full((2, 3), 4.0))


def test_copies_and_compute_are_put_on_one_stream_in_order(stub: Stub) -> None:
    with session(graphs=False) as s:
        stub.clear()
        s.run(rows(2))
        assert stub.calls(*WORK) == [
            "cuMemcpyHtoDAsync s1 32",
            "cuLaunchHostFunc s1",
            "cuMemcpyDtoHAsync s1 24",
            "cuStreamSynchronize s1",
        ]


def test_a_second_run_is_under_way_before_the_first_is_waited_for(stub: Stub) -> None:
    with session(graphs=False) as s:
        stub.clear()
        outputs = list(s.run_many(rows(1, float(i)) for i in range(4)))
        order = [c.split()[0] + " " + c.split()[1] for c in stub.calls(*WORK)]
    assert [float(o["y"][0, 0]) for o in outputs] == [0.0, 4.0, 8.0, 12.0]

    def run(stream: str) -> list[str]:
        return [f"{n} {stream}" for n in WORK[:3]]

    wait = "cuStreamSynchronize"
    assert order == [
        *run("s1"), *run("s2"), f"{wait} s1", *run("s1"), f"{wait} s2", *run("s2"), f"{wait} s1", f"{wait} s2"
    ]  # fmt: skip


def test_a_graph_is_recorded_at_the_second_run_and_launched_from_the_third(stub: Stub) -> None:
    with session(slots=1) as s:
        s.run(rows(2))
        stub.clear()
        s.run(rows(2, 2.0))
        assert [c.split()[0] for c in stub.calls(*WORK, "cuStreamBeginCapture", "cuGraphInstantiate")] == [
            "cuMemcpyHtoDAsync",
            "cuLaunchHostFunc",
            "cuMemcpyDtoHAsync",
            "cuStreamSynchronize",
            "cuStreamBeginCapture",
            "cuMemcpyHtoDAsync",
            "cuLaunchHostFunc",
            "cuMemcpyDtoHAsync",
            "cuGraphInstantiate",
            "cuStreamSynchronize",
        ]
        stub.clear()
        np.testing.assert_array_equal(s.run(rows(2, 3.0))["y"], np.full((2, 3), 12.0))
        assert stub.calls() == ["cuGraphLaunch s1", "cuStreamSynchronize s1"]


def test_each_shape_has_a_graph_and_each_graph_a_context(stub: Stub) -> None:
    with session(slots=1) as s:
        for _ in range(3):
            for count in (8, 2, 5):
                value = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
                np.testing.assert_allclose(s.run({"x": value})["y"], value @ np.ones((4, 3), np.float32), rtol=1e-5)
        assert fake_trt.events.count("context USER_MANAGED") == 4
        stub.clear()
        for count in (8, 2, 5):
            s.run(rows(count))
        assert [c.split()[0] for c in stub.calls()] == ["cuGraphLaunch", "cuStreamSynchronize"] * 3


def test_larger_shapes_move_the_buffers_and_end_the_graphs(stub: Stub) -> None:
    with session(slots=1) as s:
        for _ in range(3):
            s.run(rows(1))
        stub.clear()
        np.testing.assert_array_equal(s.run(rows(32, 2.0))["y"], np.full((32, 3), 8.0))
        assert "cuGraphExecDestroy" in stub.calls()
        np.testing.assert_array_equal(s.run(rows(1, 5.0))["y"], np.full((1, 3), 20.0))


def test_buffers_are_taken_once(stub: Stub) -> None:
    with session(slots=1) as s:
        s.run(rows(8))
        stub.clear()
        for count in (8, 1, 4, 8, 2, 8):
            s.run(rows(count))
        assert stub.calls("cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost") == []


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_a_recording_that_fails_falls_back_to_direct_runs(stub: Stub, call: str) -> None:
    with session(slots=1) as s:
        s.run(rows(2))
        stub.fail(call, 900)
        for i in range(3):
            np.testing.assert_array_equal(s.run(rows(2, i))["y"], np.full((2, 3), 4.0 * i))
        assert "cuGraphLaunch" not in "".join(stub.calls())


def test_an_engine_that_cannot_be_recorded_runs_directly(stub: Stub) -> None:
    fake_trt.refuse.add("capture")
    with session(slots=1) as s:
        for i in range(4):
            np.testing.assert_array_equal(s.run(rows(2, i))["y"], np.full((2, 3), 4.0 * i))
        assert not [c for c in stub.calls() if "Capture" in c]


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


def test_threads_share_the_slots() -> None:
    wrong: list[int] = []
    with session() as s:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(40):
                x = rng.standard_normal((int(rng.integers(1, 9)), 4)).astype(np.float32)
                if not np.allclose(s.run({"x": x})["y"], x @ np.ones((4, 3), np.float32), atol=1e-4):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_more_runs_than_slots_can_be_started_and_read_in_any_order() -> None:
    with session() as s:
        pending = [s.submit(rows(1, float(i))) for i in range(6)]
        assert [float(p.result()["y"][0, 0]) for p in reversed(pending)] == [20.0, 16.0, 12.0, 8.0, 4.0, 0.0]


def test_an_output_sized_by_values(stub: Stub) -> None:
    facts = {"inputs": {"x": [[6]]}, "outputs": {"y": ["found"]}}
    with session("nonzero", facts) as s:
        for values in ([0, 1, 1, 0, 0, 1], [1] * 6, [0] * 6, [0, 0, 0, 0, 0, 1]):
            got = s.run({"x": np.asarray(values, np.float32)})["y"]
            np.testing.assert_array_equal(got, np.flatnonzero(values))
        with pytest.raises(BackendError, match=r"'y' \(y_0\) depends on values\. Use run\(\)"):
            s.run_device({"x": on_gpu(np.ones(6, np.float32))})


def test_compute_is_timed_without_copies(stub: Stub) -> None:
    with session() as s:
        s.run(rows(2))
        stub.clear()
        assert s.compute_s(rows(2), repeats=3) == pytest.approx(0.0005)
        between = stub.calls("cuEventRecord", "cuLaunchHostFunc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")
        record, launch = "cuEventRecord s1", "cuLaunchHostFunc s1"
        assert between[-5:] == [record, launch, launch, launch, record]
        np.testing.assert_array_equal(s.run(rows(2, 2.0))["y"], np.full((2, 3), 8.0))


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


def on_gpu(array: np.ndarray, device: tuple[int, int] = (CUDA, 0)) -> DeviceTensor:
    """The stub's GPU works in host memory, so that any array is on it."""
    return DeviceTensor(array.ctypes.data, array.dtype.name, array.shape, device=device, release=lambda: None)


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


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (fake_trt.engine(sm=86), BackendError, r"built for sm_86, and this GPU is sm_87\. Build it on this machine"),
        (fake_trt.engine(version="10.3.0"), BackendError, "built by another TensorRT. Build it on this machine"),
        (fake_trt.engine()[:50], ModelError, "damaged or cut short"),
        (fake_trt.engine(types={"x": "fp8"}), ModelError, "'x' of engine 'fp16' is of type FP8"),
    ],
)
def test_an_engine_that_does_not_load_says_what_to_do(data: bytes, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        TrtSession(data, module=fake_trt, variant="fp16")


def test_memory_that_does_not_suffice_at_opening(stub: Stub) -> None:
    stub.fail("cuMemAlloc", 2)
    with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY.*open fewer sessions"):
        session()
    fake_trt.refuse.add("context")
    with pytest.raises(BackendError, match="out of memory while running 'fp16'"):
        session()


def test_memory_that_does_not_suffice_at_a_run_leaves_a_usable_session(stub: Stub) -> None:
    with session() as s:
        stub.fail("cuMemHostAlloc", 2)
        with pytest.raises(BackendError, match="OUT_OF_MEMORY"):
            s.run(rows(1))
        fake_trt.refuse.add("execute")
        with pytest.raises(BackendError, match="out of memory while running 'fp16'. Send smaller batches"):
            s.run(rows(1))
        fake_trt.refuse.clear()
        for i in range(4):
            np.testing.assert_array_equal(s.run(rows(1, i))["y"], np.full((1, 3), 4.0 * i))


def test_a_gpu_that_fails_during_a_run_is_named(stub: Stub) -> None:
    with session() as s:
        stub.fail("cuStreamSynchronize", 700)
        with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
            s.run(rows(1))


def test_a_failure_is_told_to_the_one_who_started_the_run(stub: Stub) -> None:
    with session(slots=1, graphs=False) as s:
        first = s.submit(rows(1))
        stub.fail("cuStreamSynchronize", 719)
        second = s.submit(rows(1, 3.0))
        assert second.result()["y"][0, 0] == 12.0
        with pytest.raises(BackendError, match="LAUNCH_FAILED"):
            first.result()


def test_a_refused_shape_is_a_sentence() -> None:
    with session() as s:
        fake_trt.refuse.add("shape")
        with pytest.raises(BackendError, match="TensorRT failed while running 'fp16': Static dimension mismatch"):
            s.run(rows(1))


def test_closing_waits_for_runs_and_is_final() -> None:
    s = session()
    pending = s.submit(rows(1))
    s.close()
    s.close()
    assert pending.result()["y"][0, 0] == 4.0
    with pytest.raises(BackendError, match="closed"):
        s.run(rows(1))


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match="runs on a GPU, but device is cpu"):
        session(device="cpu")
    with pytest.raises(UsageError, match="slots is 0"):
        session(slots=0)
    with pytest.raises(UsageError, match="cuda:7 does not exist"):
        session(device="cuda:7")


def test_a_module_that_records_graphs_itself_is_left_to_it(stub: Stub) -> None:
    class Strategy:
        WHOLE_GRAPH_CAPTURE = 1

    class Config:
        cuda_graph_strategy = 0

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            assert strategy is fake_trt.ExecutionContextAllocationStrategy.USER_MANAGED

    configs: list[Config] = []

    class Engine(fake_trt.ICudaEngine):
        def create_runtime_config(self) -> Config:
            configs.append(Config())
            return configs[-1]

    class Runtime(fake_trt.Runtime):
        def deserialize_cuda_engine(self, data: bytes) -> Any:
            plain = super().deserialize_cuda_engine(data)
            return Engine(plain._facts, plain._logger)

    rtx = types.ModuleType("tensorrt_rtx_bindings")
    vars(rtx).update({n: v for n, v in vars(fake_trt).items() if not n.startswith("__")})
    vars(rtx).update(CudaGraphStrategy=Strategy, Runtime=Runtime, __version__="1.7.1")
    with TrtSession(fake_trt.engine(), module=rtx, variant="fp16") as s:
        assert s.device.startswith("TensorRT-RTX 1.7.1")
        for _ in range(4):
            s.run(rows(2))
        assert [c.cuda_graph_strategy for c in configs] == [1, 1]
        assert not [c for c in stub.calls() if "Capture" in c]
