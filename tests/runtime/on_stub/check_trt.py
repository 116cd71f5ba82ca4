"""Run by test_trt.py in a process of its own: runs, streams, graphs and buffers of sessions on a stub of the driver."""

from __future__ import annotations

import threading
import types
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.session import Session
from edgekit.runtime.trt import TrtSession
from edgekit.tensors import TensorSpec
from tests.runtime.on_stub import fake_trt
from tests.runtime.on_stub.driver import Stub
from tests.runtime.on_stub.sessions import rows, session

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
WORK = ("cuMemcpyHtoDAsync", "cuLaunchHostFunc", "cuMemcpyDtoHAsync", "cuGraphLaunch", "cuStreamSynchronize")


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


def test_compute_is_timed_without_copies(stub: Stub) -> None:
    with session() as s:
        s.run(rows(2))
        stub.clear()
        assert s.compute_s(rows(2), repeats=3) == pytest.approx(0.0005)
        between = stub.calls("cuEventRecord", "cuLaunchHostFunc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")
        record, launch = "cuEventRecord s1", "cuLaunchHostFunc s1"
        assert between[-5:] == [record, launch, launch, launch, record]
        np.testing.assert_array_equal(s.run(rows(2, 2.0))["y"], np.full((2, 3), 8.0))


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
