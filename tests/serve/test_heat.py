"""Heat: when a server is not ready, how it steps back and forward, and that users see why; on built boards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.package import Package
from edgekit.serve.cooling import Cooling, cheaper_variant
from edgekit.serve.heat import Admission, Readiness
from edgekit.serve.library import Library
from edgekit.serve.machine import MachineWatch
from edgekit.serve.server import Server
from tests.serve.running import Client, infer_body, tensor
from tests.serve.test_server import fake
from tests.telemetry import boards
from tests.telemetry.trees import write

ALERT = "sys/class/thermal/cooling_device2/cur_state"  # gpu-throttle-alert
ZONES = 6


def set_temp(root: Path, celsius: float) -> None:
    """The hottest zone of an Orin: its first trip point is at 99 degrees."""
    with (root / f"sys/class/thermal/thermal_zone{ZONES - 1}/temp").open("r+") as file:
        file.write(f"{round(celsius * 1000):5d}\n")


def wait_for(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_short_throttling_is_passed_over_and_a_cause_stays_until_it_is_gone_for_a_while() -> None:
    readiness = Readiness(after_s=3.0, recover_s=10.0)
    for second, throttled in enumerate([["hot"], [], [], [], ["hot"], []]):
        readiness.update(throttled, float(second))
        assert readiness.causes == ()
    for second in range(20, 24):
        assert readiness.causes == ()
        readiness.update(["hot", "under-voltage", "hot"], float(second))
    assert readiness.causes == ("hot", "under-voltage")
    for second in range(24, 33):
        readiness.update([], float(second))
        assert readiness.causes
    readiness.update([], 33.0)
    assert readiness.causes == ()
    readiness.update(["hot"], 34.0)
    assert readiness.causes == ()  # from the start again


def test_steps_come_with_the_heat_and_go_a_little_later() -> None:
    admission = Admission(20.0)
    levels = []
    for headroom in (30.0, 19.9, 15.0, 9.9, 4.9, 1.0, -3.0, 6.5, 7.5, 11.0, 12.5, 21.0, 22.5, None):
        admission.update(headroom)
        levels.append(admission.level)
    assert levels == [0, 1, 1, 2, 3, 3, 3, 3, 2, 2, 1, 1, 0, 0]
    admission.update(1.0)
    assert sum(admission.admit() for _ in range(100)) == 50
    assert not admission.update(0.5)
    assert admission.update(None)
    assert all(admission.admit() for _ in range(100))


@pytest.fixture
def board(tmp_path: Path) -> Path:
    root = boards.orin_nano(tmp_path / "board")
    set_temp(root, 49.0)
    return root


def test_a_throttled_board_is_not_ready_and_says_the_cause(board: Path) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    from edgekit.serve.model import Model

    server = Server([Model(fake(), name="net")], port=0, grpc_port=0)
    server.app.machine = MachineWatch(board, guards=True)
    server.app.machine._readiness = Readiness(after_s=0.2, recover_s=0.5)
    with (
        server,
        Client(server.url) as client,
        grpcclient.InferenceServerClient(server.grpc_address) as calls,
    ):
        ask = lambda: client.ask("GET", "/v2/health/ready")  # noqa: E731
        wait_for(lambda: server.app.machine.now is not None)
        assert ask().status == 200
        write(board, {ALERT: "1\n"})
        wait_for(lambda: ask().status == 503)
        assert ask().json == {"ready": False, "reason": "the machine is slowed down by gpu-throttle-alert"}
        assert client.ask("GET", "/v2/health/live").status == 200
        assert client.ask("POST", "/v2/models/net/infer", infer_body(tensor("x", [1], [3]))).status == 200
        assert not calls.is_server_ready()
        text = client.ask("GET", "/metrics").body.decode()
        assert "\nedgekit_ready 0\n" in text
        assert 'edgekit_throttled{cause="gpu-throttle-alert"} 1' in text
        write(board, {ALERT: "0\n"})
        wait_for(lambda: ask().status == 200)
        assert calls.is_server_ready()


def test_a_machine_that_names_no_cause_is_not_read(tmp_path: Path) -> None:
    watch = MachineWatch(tmp_path, guards=True)
    watch.begin(if_it_throttles=True)
    time.sleep(0.3)
    assert watch.now is None
    assert watch.unready == ""
    watch.close()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    from tests.tiny import tiny_package

    return tiny_package(tmp_path / "tiny.edge")


def test_a_board_that_gets_hot_takes_smaller_batches_a_cheaper_variant_and_fewer_requests(
    board: Path, package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    variants = {v.id for v in package.manifest.variants}
    assert "int8" in variants
    library = Library([package.path], given={"variant": "fp32", "max_batch": 16})
    models = library.load_all()
    assert cheaper_variant(models[0]) == "int8"
    sample = package.samples().inputs
    name, value = next(iter(sample.items()))
    body = infer_body(tensor(name, [1, *value.shape[1:]], np.asarray(value[:1]).ravel().tolist()))
    server = Server(models, port=0, library=library)
    server.app.machine = MachineWatch(board)
    server.app.cooling = cooling = Cooling(server.app, 20.0)
    with caplog.at_level(logging.WARNING, "edgekit.serve"), server, Client(server.url) as client:

        def infer(**parameters: int) -> int:
            extra = {"parameters": parameters} if parameters else {}
            return client.ask("POST", "/v2/models/tiny/infer", body[:-1] + extra_json(extra)).status

        def served() -> str:
            return server.app.repository.find("tiny").session.variant

        wait_for(lambda: server.app.machine.headroom_c is not None)
        assert cooling.admission.level == 0
        full = server.app.repository.find("tiny").worker.max_rows
        assert full == 16
        set_temp(board, 99.0 - 15.0)
        wait_for(lambda: cooling.admission.level == 1)
        assert server.app.repository.find("tiny").worker.max_rows == full // 4
        assert served() == "fp32"
        set_temp(board, 99.0 - 8.0)
        wait_for(lambda: served() == "int8")
        assert server.app.repository.find("tiny").worker.max_rows <= full // 4
        assert infer() == 200
        set_temp(board, 99.0 - 3.0)
        wait_for(lambda: cooling.admission.level == 3)
        answers = [infer() for _ in range(20)]
        assert sorted(set(answers)) == [200, 503]
        assert answers.count(503) == 10
        assert [infer(priority=1) for _ in range(10)] == [200] * 10
        while True:
            refused = client.ask("POST", "/v2/models/tiny/infer", body)
            if refused.status == 503:
                break
        assert refused.headers["retry-after"] == "5"
        assert "too hot" in refused.json["error"]
        text = client.ask("GET", "/metrics").body.decode()
        assert "\nedgekit_thermal_step 3\n" in text
        assert 'edgekit_failures_total{model="tiny",version="1",status="503"}' in text
        set_temp(board, 49.0)
        wait_for(lambda: cooling.admission.level == 0 and served() == "fp32")
        assert server.app.repository.find("tiny").worker.max_rows == full
        assert [infer() for _ in range(10)] == [200] * 10
    told = caplog.text
    for words in ("step 1, smaller batches", "step 2, cheaper variant", "step 3, load shedding", "runs as int8"):
        assert words in told
    assert "step 0, none" in told


def extra_json(extra: dict[str, object]) -> bytes:
    import json

    text = json.dumps(extra)[1:-1].encode()
    return (b"," + text if text else b"") + b"}"
