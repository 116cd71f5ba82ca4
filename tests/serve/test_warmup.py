"""What a model costs, measured."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgekit.errors import BackendError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.joining import Joiner
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.warmup import Cost, check_joined, measure, measure_joined
from edgekit.tensors import Tensors, TensorSpec

X, Y = TensorSpec("x", "float32", ("n", 4)), TensorSpec("y", "float32", ("n", 4))
SAMPLES = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def joined(function: object, *, base_s: float, row_s: float) -> tuple[int, Cost]:
    def run(feed: Tensors) -> Tensors:
        time.sleep(base_s + row_s * len(feed["x"]))
        return {"y": function(feed["x"])}  # type: ignore[operator]

    session = FakeSession([X], [Y], run)
    cost = Cost(base_s + row_s, 16)
    return measure_joined(session, Joiner([X], [Y]), SAMPLES, cost, budget_s=0.5)


def test_measuring_stops_when_its_time_is_spent() -> None:
    model = FakeSession([X], [Y], lambda feed: {"y": feed["x"]}, latency_s=0.02)
    start = time.monotonic()
    cost = measure(model, SAMPLES, runs=1000, budget_s=0.05)
    assert 0.02 <= cost.latency_s < time.monotonic() - start
    assert model.calls < 10


def test_a_cost_grows_with_bytes_beyond_what_was_measured() -> None:
    cost = Cost(1.0, 100, ((200, 1.5), (400, 2.0)))
    assert [cost.of_bytes(n) for n in (1, 100, 101, 200, 300, 400, 800)] == [1.0, 1.0, 1.5, 1.5, 2.0, 2.0, 4.0]
    assert Cost(1.0, 100).of({"x": np.zeros(300, np.uint8)}) == pytest.approx(3.0)


def test_rows_that_get_cheaper_in_company_are_joined() -> None:
    rows, cost = joined(np.negative, base_s=2e-3, row_s=1e-4)
    assert rows >= 8
    assert cost.steps[0][0] == 32


def test_rows_that_cost_the_same_in_company_are_not() -> None:
    rows, _ = joined(np.negative, base_s=0.0, row_s=2e-3)
    assert rows == 1


def test_rows_that_come_out_differently_in_company_are_not() -> None:
    rows, _ = joined(lambda x: x / np.abs(x).max(), base_s=2e-3, row_s=0.0)
    assert rows == 1


def test_a_slow_model_is_not_tried_for_long() -> None:
    start = time.monotonic()
    rows, cost = joined(np.negative, base_s=0.2, row_s=0.0)
    assert (rows, cost.steps) == (1, ())
    assert time.monotonic() - start < 0.1


def limited(most: int) -> FakeSession:
    """As an engine that was built for so many rows."""

    def run(feed: Tensors) -> Tensors:
        if len(feed["x"]) > most:
            raise BackendError(f"the engine takes 1 to {most} rows")
        time.sleep(2e-3)
        return {"y": -feed["x"]}

    return FakeSession([X], [Y], run)


def test_a_model_with_a_largest_batch_is_joined_up_to_it() -> None:
    rows, _ = measure_joined(limited(4), Joiner([X], [Y]), SAMPLES, Cost(2e-3, 16), budget_s=0.5)
    assert rows == 4


def test_rows_that_are_asked_for_are_tried() -> None:
    joiner = Joiner([X], [Y])
    assert check_joined(limited(4), joiner, SAMPLES, 4) == ""
    assert check_joined(limited(4), joiner, SAMPLES, 5) == "5 rows do not run: the engine takes 1 to 4 rows"
    fixed = TensorSpec("x", "float32", (1, 4))
    assert "its batch is not free" in check_joined(limited(4), Joiner([fixed], [Y]), SAMPLES, 2)
    norm = FakeSession([X], [Y], lambda feed: {"y": feed["x"] / np.abs(feed["x"]).max()})
    assert check_joined(norm, joiner, SAMPLES, 2) == "rows come out differently in company"


def test_more_rows_than_a_model_takes_are_not_joined_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(limited(4), name="net", sample=SAMPLES, options=ModelOptions(max_batch=8))
    assert model.worker.max_rows == 4
    assert "max_batch is 8, which is not used: 8 rows do not run: the engine takes 1 to 4 rows" in caplog.text
    assert Model(limited(4), name="net", sample=SAMPLES, options=ModelOptions(max_batch=3)).worker.max_rows == 3
    assert Model(limited(4), name="net", sample=SAMPLES, options=ModelOptions(max_batch=1)).worker.max_rows == 1
