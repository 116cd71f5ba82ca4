"""Requests that come in one turn of the loop and run together: each gets its own answer, and all are counted."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.fake import FakeSession
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.server import Server
from edgekit.serve.stats import Stats
from edgekit.serve.turn_batch import TurnBatch, first_axis
from edgekit.serve.warmup import Cost
from edgekit.tensors import Tensors, TensorSpec
from tests.serve.running import Client
from tests.serve.test_shortcut import ROUNDS, on_loop, values_of

FLOAT = np.dtype(np.float32)
X, Y = TensorSpec("x", "float32", ("n", 2)), TensorSpec("y", "float32", ("n", 2))


class Loop:
    """Calls what it was given to call soon when `end_turn` says so; remembers the runs."""

    def __init__(self, run: Callable[[Tensors], Tensors] | None = None, *, rows: int = 1, most: int = 32) -> None:
        self.soon: list[Callable[[], None]] = []
        self.runs: list[int] = []
        self.stats = Stats()
        self._run = run or (lambda feed: {"y": feed["x"] * 2})
        self.turn = TurnBatch(
            self.run, [("x", FLOAT, (rows, 2))], stats=self.stats, most=most, soon=lambda f: self.soon.append(f)
        )

    def run(self, feed: Tensors) -> Tensors:
        self.runs.append(len(feed["x"]))
        return self._run(feed)

    def end_turn(self) -> None:
        calls, self.soon = self.soon, []
        for call in calls:
            call()


def ask(loop: Loop, values: list[float], rows: int = 1) -> list[Any]:
    """A request for each of `values`; what each was given, once the turn is over."""
    given: list[Any] = []
    for value in values:
        loop.turn.add((np.full((rows, 2), value, np.float32).tobytes(),), given.append)
    return given


def test_requests_of_one_turn_are_one_run_and_each_gets_its_own() -> None:
    loop = Loop()
    given = ask(loop, [1, 2, 3])
    assert (len(given), len(loop.soon)) == (0, 1), "nothing runs before the turn ends"
    loop.end_turn()
    assert [g["y"].tolist() for g in given] == [[[2, 2]], [[4, 4]], [[6, 6]]]
    assert loop.runs == [3]
    ask(loop, [4])
    loop.end_turn()
    assert loop.runs == [3, 1]
    document = loop.stats.document("f", "1")
    assert (document["inference_count"], document["execution_count"]) == (4, 2)
    assert document["inference_stats"]["success"]["count"] == 4
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in document["batch_stats"]] == [(1, 1), (3, 1)]
    assert sum(loop.stats.request_times.counts) == sum(loop.stats.queue_times.counts) == 4
    assert sum(loop.stats.run_times.counts) == 2


def test_runs_are_evenly_filled() -> None:
    loop = Loop(most=8)
    given = ask(loop, list(range(18)))
    loop.end_turn()
    assert loop.runs == [6, 6, 6]
    assert [g["y"][0, 0] for g in given] == [2 * k for k in range(18)]


def test_requests_of_several_rows() -> None:
    loop = Loop(rows=3, most=8)
    given = ask(loop, [1, 2, 3], rows=3)
    loop.end_turn()
    assert sorted(loop.runs) == [3, 6], "two requests fill a run of at most eight rows"
    assert all(g["y"].shape == (3, 2) for g in given)
    large = Loop(rows=9, most=8)
    ask(large, [1, 2], rows=9)
    large.end_turn()
    assert large.runs == [9, 9]


def test_one_request_at_fault_spoils_no_other() -> None:
    def touchy(feed: Tensors) -> Tensors:
        if (feed["x"] < 0).any():
            raise ValueError("negative")
        return {"y": feed["x"]}

    loop = Loop(touchy)
    given = ask(loop, [1, -1, 2])
    loop.end_turn()
    assert isinstance(given[1], ValueError)
    assert [given[i]["y"][0, 0] for i in (0, 2)] == [1, 2]
    assert loop.stats.success.count == 2


def test_outputs_without_a_row_for_each_are_run_again_alone() -> None:
    loop = Loop(lambda feed: {"y": feed["x"][feed["x"][:, 0] > 0]})
    given = ask(loop, [1, -1, 2])
    loop.end_turn()
    assert [len(g["y"]) for g in given] == [1, 0, 1]


def test_an_answer_that_cannot_be_given_spoils_no_other(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    loop.turn.add((b"\0" * 8,), lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    given = ask(loop, [3])
    loop.end_turn()
    assert given[0]["y"].tolist() == [[6, 6]]
    assert "ZeroDivisionError" in caplog.text


def test_a_client_alone_is_not_made_to_wait_and_others_are_noticed() -> None:
    loop, gathered = Loop(), 0
    for _ in range(330):
        if loop.turn.gathers():
            gathered += 1
            ask(loop, [1])
            loop.end_turn()
    assert gathered <= 15, "all but one of 32 run at once"
    for _ in range(100):  # now ten come in each turn
        joined = [1.0 for _ in range(10) if loop.turn.gathers()]
        ask(loop, joined)
        loop.end_turn()
    assert all(loop.turn.gathers() for _ in range(10))


def test_what_can_be_joined_in_front() -> None:
    assert first_axis([("a", FLOAT, (2, 3)), ("b", FLOAT, (2,))])
    for shapes in ([(2, 3), (1, 3)], [(2,), ()], [(0, 2)], []):
        assert not first_axis([("a", FLOAT, shape) for shape in shapes])


@pytest.mark.parametrize(
    ("latency_s", "steps", "rows"),
    [
        (10e-6, ((16, 11e-6), (32, 12e-6), (64, 16e-6)), 8),
        (10e-6, ((16, 20e-6), (32, 40e-6)), 1),
        (200e-6, ((16, 210e-6), (32, 400e-6)), 2),  # four would keep others waiting for more than 300 us
        (20e-6, ((16, 29e-6), (32, 45e-6), (64, 78e-6), (128, 142e-6), (256, 274e-6)), 8),  # sixteen are hardly cheaper
        (10e-6, (), 1),
    ],
    ids=["pays", "does not pay", "pays as long as it is short", "pays less and less", "not measured"],
)
def test_rows_that_pay(latency_s: float, steps: tuple[tuple[int, float], ...], rows: int) -> None:
    cost = Cost(latency_s, 8, steps)
    model = Model(FakeSession([X], [Y], lambda f: {"y": f["x"]}), name="f", cost=cost)
    assert cost.rows_that_pay(1e-6, longest_s=300e-6) == rows
    turn = model.worker.turn([("x", FLOAT, (1, 2))], stats=model.stats, soon=print)
    assert (turn is None) == (rows == 1)


def costly(feed: Tensors) -> Tensors:
    """A model whose call takes 100 microseconds, whatever the rows."""
    end = time.perf_counter() + 100e-6
    while time.perf_counter() < end:
        pass
    if (feed["x"] == 13).any():
        raise ValueError("unlucky")
    return {"y": feed["x"] * 2}


def served(options: ModelOptions | None = None) -> Server:
    session = FakeSession([X], [Y], costly)
    cost = Cost(100e-6, 8, ((16, 100e-6), (32, 100e-6), (64, 100e-6), (128, 100e-6)))
    return Server([Model(session, name="f", cost=cost, max_rows=16, options=options)], port=0, grpc_port=0)


def request(x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    item = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def http_rounds(server: Server, rounds: list[list[float]]) -> Iterator[tuple[float, list[float] | None]]:
    """In each round a request on every connection, then their answers: each value with what came of it."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.url)) for _ in rounds[0]]
        for values in rounds:
            for client, value in zip(clients, values):
                body, lines = request(np.full((1, 2), value, np.float32))
                head = "".join(f"{k}: {v}\r\n" for k, v in {**lines, "Content-Length": str(len(body))}.items())
                client.send(f"POST /v2/models/f/infer HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode() + body)
            for client, value in zip(clients, values):
                answer = client.read()
                yield value, values_of(answer) if answer.status == 200 else None


def grpc_rounds(server: Server, rounds: list[list[float]]) -> Iterator[tuple[float, list[float] | None]]:
    """The same over gRPC."""
    h2_client = pytest.importorskip("tests.serve.h2_client", reason="needs hpack and tritonclient")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(h2_client.H2Client(server.grpc_address)) for _ in rounds[0]]
        for k, values in enumerate(rounds):
            stream = 2 * k + 1
            for client, value in zip(clients, values):
                client.call(stream, h2_client.infer_message(np.full((1, 2), value, np.float32), "f"))
            for client, value in zip(clients, values):
                fields, body = client.answer(stream)
                yield value, np.frombuffer(body[-8:], np.float32).tolist() if fields["grpc-status"] == "0" else None


@pytest.mark.parametrize("ask_rounds", [http_rounds, grpc_rounds], ids=["http", "grpc"])
def test_many_clients_share_runs_and_each_gets_its_own(ask_rounds: Callable[..., Any]) -> None:
    rounds = [[k + (j % 50) / 64 for k in range(9)] for j in range(80)]
    rounds[40][3] = 13
    with served() as server:
        answers = list(ask_rounds(server, rounds))
        stats = server.app.statistics("f")["model_stats"][0]
    assert len(answers) == 720
    assert all(given == (None if value == 13 else [2 * value] * 2) for value, given in answers)
    assert stats["inference_stats"]["success"]["count"] == 719
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert stats["execution_count"] < 0.8 * 720, "requests shared runs"
    assert max(b["batch_size"] for b in stats["batch_stats"]) > 1


def test_another_model_in_its_place_answers_from_then_on() -> None:
    with served() as server, Client(server.url) as client:
        for k in range(ROUNDS):
            assert (
                values_of(client.ask("POST", "/v2/models/f/infer", *request(np.full((1, 2), k, np.float32))))
                == [2 * k] * 2
            )
        other = FakeSession([X], [Y], lambda f: {"y": f["x"] * 10})
        on_loop(server, lambda: server.app.switch(Model(other, name="f", cost=Cost(1e-6, 8, ((16, 1e-6),)))))
        for k in range(ROUNDS):
            assert (
                values_of(client.ask("POST", "/v2/models/f/infer", *request(np.full((1, 2), k, np.float32))))
                == [10 * k] * 2
            )


def test_clients_that_leave_before_the_turn_ends_disturb_no_other() -> None:
    body, lines = request(np.full((1, 2), 1, np.float32))
    with served() as server, Client(server.url) as staying:
        for _ in range(ROUNDS):
            assert values_of(staying.ask("POST", "/v2/models/f/infer", body, lines)) == [2, 2]
        for _ in range(20):
            with Client(server.url) as leaving:
                head = "".join(f"{k}: {v}\r\n" for k, v in {**lines, "Content-Length": str(len(body))}.items())
                leaving.send(f"POST /v2/models/f/infer HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode() + body)
            assert values_of(staying.ask("POST", "/v2/models/f/infer", body, lines)) == [2, 2]
