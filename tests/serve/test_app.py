"""What the server can do, asked without any door."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.app import App
from edgekit.serve.messages import InferRequest, InferResponse, RequestError, WantedOutput
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from edgekit.tensors import Array, TensorSpec

INPUTS = [TensorSpec("x", "float32", ("n", 2)), TensorSpec("scale", "float32", ())]
OUTPUTS = [TensorSpec("y", "float32", ("n", 2)), TensorSpec("total", "float64", ())]


def app(**options: Any) -> App:
    def run(feed: dict[str, Array]) -> dict[str, Array]:
        return {"y": feed["x"] * feed["scale"], "total": np.array(feed["x"].sum(dtype=np.float64))}

    sample = {"x": np.ones((4, 2), np.float32), "scale": np.array(1, np.float32)}
    values = {"sample": sample, "defaults": {"scale": np.array(2, np.float32)}, "labels": ("a", "b"), **options}
    return App(Repository([Model(FakeSession(INPUTS, OUTPUTS, run), name="net", version="3", **values)]))


def ask(served: App, request: InferRequest) -> InferResponse | Exception:
    answers: list[InferResponse | Exception] = []
    served.infer(served.repository.find("net"), request, answers.append, lambda call, *given: call(*given), 0)
    (answer,) = answers
    return answer


def test_outputs_as_they_were_asked_for() -> None:
    x = np.array([[1, 2], [4, 3]], np.float32)
    answer = ask(app(), InferRequest({"x": x}, id="i", binary=True))
    assert isinstance(answer, InferResponse)
    assert (answer.model, answer.version, answer.id) == ("net", "3", "i")
    assert [(o.name, o.datatype, o.binary, o.value.tolist()) for o in answer.outputs] == [
        ("y", "FP32", True, [[2, 4], [8, 6]]),
        ("total", "FP64", True, 10),
    ]
    wanted = (WantedOutput("total"), WantedOutput("y", classes=1))
    answer = ask(app(), InferRequest({"x": x, "scale": np.array(1, np.float32)}, outputs=wanted))
    assert isinstance(answer, InferResponse)
    assert [(o.name, o.datatype, o.value.tolist()) for o in answer.outputs] == [
        ("total", "FP64", 10),
        ("y", "BYTES", [["2.000000:1:b"], ["4.000000:0:a"]]),
    ]


def test_a_default_counts_for_every_row_of_a_request() -> None:
    specs = [TensorSpec("x", "float32", ("n", 2)), TensorSpec("least", "float32", ("n",))]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        return {"y": np.maximum(feed["x"], feed["least"][:, None])}

    net = Model(FakeSession(specs, OUTPUTS[:1], run), name="net", defaults={"least": np.array(2, np.float32)})
    served = App(Repository([net]))
    try:
        for rows in (1, 3):
            done = threading.Event()
            answers: list[InferResponse | Exception] = []
            served.infer(
                net,
                InferRequest({"x": np.ones((rows, 2), np.float32)}),
                lambda answer: (answers.append(answer), done.set()),  # noqa: B023
                lambda call, *given: call(*given),
                0,
            )
            assert done.wait(10)
            assert isinstance(answers[0], InferResponse), answers[0]
            assert answers[0].outputs[0].value.tolist() == [[2, 2]] * rows
    finally:
        net.close()


def test_every_fault_is_an_answer() -> None:
    x = np.ones((1, 2), np.float32)
    served = app(states={"x": "y"})
    for request, words in (
        (InferRequest({}), "Input 'x' is missing"),
        (InferRequest({"x": x}, outputs=(WantedOutput("z"),)), "'z' is not an output of 'net'; it has y, total"),
        (InferRequest({"x": x}, parameters={"sequence_id": 4}), "Begin with sequence_start"),
    ):
        answer = ask(served, request)
        assert isinstance(answer, InputError)
        assert words in str(answer)
    stats = served.statistics("net")["model_stats"][0]["inference_stats"]
    assert (stats["fail"]["count"], stats["success"]["count"]) == (3, 0)


def test_a_sequence_id_means_nothing_to_a_model_without_state() -> None:
    x = np.ones((1, 2), np.float32)
    assert isinstance(ask(app(), InferRequest({"x": x}, parameters={"sequence_id": 4})), InferResponse)


def test_statistics_count_rows_and_runs() -> None:
    served = app()
    for rows in (1, 3):
        ask(served, InferRequest({"x": np.ones((rows, 2), np.float32)}))
    document = served.statistics()["model_stats"][0]
    assert (document["name"], document["version"]) == ("net", "3")
    assert (document["inference_count"], document["execution_count"]) == (4, 2)
    assert document["last_inference"] > 1_600_000_000_000
    stats = document["inference_stats"]
    parts = sum(stats[k]["ns"] for k in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts == stats["success"]["ns"]


def test_closing_ends_readiness_and_unknown_models_are_named() -> None:
    served = app()
    with pytest.raises(RequestError, match="'other' is not served here; this server has net"):
        served.model_metadata("other")
    assert served.ready
    served.close()
    assert not served.ready


def test_a_sequence_ends_on_the_model_that_it_began_on() -> None:
    """When its model is replaced, the state that it left means nothing to the new one."""

    def adder(step: float, version: str = "1") -> Model:
        specs = (
            [TensorSpec("x", "float32", ("n", 1)), TensorSpec("sum", "float32", ("n", 1))],
            [TensorSpec("total", "float32", ("n", 1)), TensorSpec("y", "float32", ("n", 1))],
        )

        def run(feed: dict[str, Array]) -> dict[str, Array]:
            total = feed["sum"] + feed["x"] * np.float32(step)
            return {"total": total, "y": total}

        sample = {"x": np.ones((1, 1), np.float32), "sum": np.zeros((1, 1), np.float32)}
        return Model(FakeSession(*specs, run), name="net", version=version, states={"sum": "total"}, sample=sample)

    old, new = adder(1), adder(100)
    served = App(Repository([old]))

    def step(sequence: int, **flags: bool) -> float:
        request = InferRequest({"x": np.ones((1, 1), np.float32)}, parameters={"sequence_id": sequence, **flags})
        answer = ask(served, request)
        assert isinstance(answer, InferResponse), answer
        return float(answer.outputs[0].value[0, 0])

    assert step(1, sequence_start=True) == 1
    served.switch(new)
    assert step(2, sequence_start=True) == 100
    assert (step(1), step(2)) == (2, 200)
    served.sweep()
    assert not old.worker.closed
    assert step(1, sequence_end=True) == 3
    served.sweep()
    assert old.worker.closed
    assert step(2) == 300
    served.switch(adder(7, version="2"))
    served.withdraw("net", "1", "replaced", forget=True)
    assert step(2, sequence_end=True) == 400
    assert step(3, sequence_start=True) == 7
    served.close()
