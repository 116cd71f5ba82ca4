"""Joules of a request: the run's energy above idle by its share of the rows, told only where there is a sensor."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.runtime.fake import FakeSession
from edgekit.serve.energy import ESTIMATE, EnergyMeter
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.server import Server
from edgekit.tensors import TensorSpec
from tests.serve.running import Answer, Client, infer_body, tensor
from tests.telemetry import boards

VOLTS = 4.984


def set_power(root: Path, watts: float) -> None:
    """In place: a kernel's file is never seen empty."""
    with (root / "sys/class/hwmon/hwmon1/curr1_input").open("r+") as file:
        file.write(f"{round(watts / VOLTS * 1000):4d}\n")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    root = boards.orin_nano(tmp_path)
    set_power(root, 5.0)
    return root


@pytest.fixture
def meter(board: Path) -> EnergyMeter:
    meter = EnergyMeter(board, interval_s=0.01)
    meter.start()
    end = time.monotonic() + 5.0
    while meter.of(0.0, share=1.0) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return meter


def test_a_short_run_is_estimated_from_power_above_idle_and_shared_out(board: Path, meter: EnergyMeter) -> None:
    set_power(board, 9.0)
    time.sleep(0.4)
    whole, half = meter.of(0.1, share=1.0), meter.of(0.1, share=0.5)
    meter.stop()
    assert whole is not None
    assert half is not None
    assert whole.source == ESTIMATE
    assert whole.energy_j == pytest.approx(4.0 * 0.1, rel=0.01)
    assert half.energy_j == pytest.approx(whole.energy_j / 2)
    assert "VDD_IN" in meter.scope


def test_a_long_run_is_read_from_the_sensor(board: Path, meter: EnergyMeter) -> None:
    began = time.monotonic()
    set_power(board, 9.0)
    time.sleep(0.6)
    set_power(board, 7.0)
    time.sleep(0.6)
    found = meter.of(time.monotonic() - began, share=1.0)
    meter.stop()
    assert found is not None
    assert found.source == "rail"
    assert found.energy_j == pytest.approx(4.0 * 0.6 + 2.0 * 0.6, rel=0.2)


def test_work_that_cannot_be_told_from_idle_is_0_and_no_sensor_is_no_figure(tmp_path: Path, meter: EnergyMeter) -> None:
    found = meter.of(0.1, share=1.0)
    meter.stop()
    assert found is not None
    assert found.energy_j == 0.0
    none = EnergyMeter(tmp_path / "no machine")
    none.start()
    time.sleep(0.2)
    assert none.of(1.0, share=1.0) is None
    none.stop()
    assert none.reason


def test_each_answer_tells_its_share_of_a_joined_run(board: Path, meter: EnergyMeter) -> None:
    spec = [TensorSpec("x", "float32", ("batch", 1))]
    session = FakeSession(
        spec, [TensorSpec("y", "float32", ("batch", 1))], lambda feed: {"y": feed["x"]}, latency_s=0.2
    )
    options = ModelOptions(max_batch=4, queue_delay_ms=300.0, preferred_batch=(4,))
    model = Model(session, name="net", sample={"x": np.ones((4, 1), np.float32)}, options=options)
    server = Server([model], port=0)
    answers: dict[int, Answer] = {}

    def talk(rows: int) -> None:
        with Client(server.url) as client:
            answers[rows] = client.ask("POST", "/v2/models/net/infer", infer_body(tensor("x", [rows, 1], [1.0] * rows)))

    with server:
        with Client(server.url) as client:
            alone = client.ask("POST", "/v2/models/net/infer", infer_body(tensor("x", [1, 1], [1.0])))
        assert "x-energy-joules" not in alone.headers  # off unless it was asked for
        server.app.energy = meter
        set_power(board, 9.0)
        time.sleep(0.3)
        threads = [threading.Thread(target=talk, args=(rows,)) for rows in (1, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Client(server.url) as client:
            metrics = client.ask("GET", "/metrics").body.decode()
    joules = {rows: float(a.headers["x-energy-joules"]) for rows, a in answers.items()}
    assert {a.headers["x-energy-source"] for a in answers.values()} <= {ESTIMATE, "rail"}
    assert joules[3] == pytest.approx(3 * joules[1], rel=0.15)
    assert joules[1] + joules[3] == pytest.approx(4.0 * 0.2, rel=0.25)
    told = re.findall(r'edgekit_request_energy_joules_(\w+)\{model="net",version="1",source="\w+"\} (\S+)', metrics)
    assert sum(float(value) for name, value in told if name == "count") == 2
    assert sum(float(value) for name, value in told if name == "sum") == pytest.approx(sum(joules.values()), rel=1e-4)
