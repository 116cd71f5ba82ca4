"""Requests that repeat in all but their tensors: each gets its own answer, whatever changes between them."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.runtime.fake import FakeSession
from edgekit.serve.auth import Tokens
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.serve.server import Server
from edgekit.tensors import Array, Tensors, TensorSpec
from tests.serve.running import Answer, Client

SPECS = ([TensorSpec("x", "float32", ("n",))], [TensorSpec("y", "float32", ("m",))])
ONE = {"x": np.ones(1, np.float32)}
ROUNDS = 6


def model_of(function: Callable[[Array], Array], *, version: str = "1", options: ModelOptions | None = None) -> Model:
    def run(feed: Tensors) -> Tensors:
        return {"y": np.asarray(function(feed["x"]), np.float32)}

    return Model(FakeSession(*SPECS, run), name="f", version=version, sample=ONE, options=options)


@contextlib.contextmanager
def served(model: Model, **settings: object) -> Iterator[tuple[Server, Client]]:
    with Server([model], port=0, **settings) as server, Client(server.url) as client:
        yield server, client


def ask(client: Client, *values: float, lines: dict[str, str] | None = None, **fields: object) -> Answer:
    x = np.array(values, np.float32)
    item = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}, **fields}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), **(lines or {})}
    return client.ask("POST", "/v2/models/f/infer", head + x.tobytes(), headers)


def values_of(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    size = answer.json["outputs"][0]["parameters"]["binary_data_size"]
    assert len(answer.body) == length + size
    return np.frombuffer(answer.body, np.float32, size // 4, length).tolist()


def on_loop(server: Server, work: Callable[[], object]) -> None:
    """`work` on the server's own thread, where its App may be changed."""
    done = threading.Event()
    assert server._loop is not None
    server._loop.call_soon_threadsafe(lambda: (work(), done.set()))
    assert done.wait(10)


def test_each_request_gets_its_own_answer_and_is_counted() -> None:
    with served(model_of(lambda x: 2 * x)) as (server, client):
        for k in range(ROUNDS):
            assert values_of(ask(client, k, k + 1)) == [2 * k, 2 * k + 2]
        with Client(server.url) as other:
            assert values_of(ask(other, 7, 8)) == [14, 16], "what is known holds for every connection"
        stats = client.ask("GET", "/v2/models/f/stats").json["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == ROUNDS + 1
        assert stats["execution_count"] == ROUNDS + 1
        assert stats["inference_count"] == 2 * (ROUNDS + 1)
        assert [b["batch_size"] for b in stats["batch_stats"]] == [2]
        text = client.ask("GET", "/metrics").body.decode()
        assert f'edgekit_request_duration_seconds_count{{model="f",version="1"}} {ROUNDS + 1}' in text


def test_the_same_head_before_another_json_is_understood_anew() -> None:
    with served(model_of(lambda x: x + 1)) as (_, client):
        for k in range(3 * ROUNDS):
            wanted = "y" if k % 3 else "z"  # the same length, and another meaning
            answer = ask(client, k, outputs=[{"name": wanted}])
            if wanted == "y":
                assert values_of(answer) == [k + 1]
            else:
                assert (answer.status, "'z'" in answer.json["error"]) == (400, True)


def test_shapes_that_depend_on_the_values() -> None:
    with served(model_of(lambda x: x[x > 0])) as (_, client):
        for _ in range(ROUNDS):
            assert values_of(ask(client, 1, 2, 3)) == [1, 2, 3]
            assert values_of(ask(client, -1, 2, -3)) == [2]
            assert values_of(ask(client, -1, -2, -3)) == []


def test_another_model_in_its_place_answers_from_then_on() -> None:
    with served(model_of(lambda x: x)) as (server, client):
        for _ in range(ROUNDS):
            assert values_of(ask(client, 5)) == [5]
        on_loop(server, lambda: server.app.switch(model_of(lambda x: 10 * x)))
        for _ in range(ROUNDS):
            assert values_of(ask(client, 5)) == [50]
        on_loop(server, lambda: server.app.switch(model_of(lambda x: 100 * x, version="2")))
        assert values_of(ask(client, 5)) == [500], "a later version is what a request without one asks for"
        on_loop(server, lambda: [server.app.withdraw("f", v, "unloaded") for v in ("1", "2")])
        assert ask(client, 5).status == 404


def test_a_failure_is_this_requests_own() -> None:
    def touchy(x: Array) -> Array:
        if x[0] < 0:
            raise ValueError("negative")
        return x

    with served(model_of(touchy)) as (_, client):
        for k in range(ROUNDS):
            assert values_of(ask(client, k)) == [k]
            answer = ask(client, -1 - k)
            assert (answer.status, "negative" in answer.body.decode()) == (500, False)
        stats = client.ask("GET", "/v2/models/f/stats").json["model_stats"][0]["inference_stats"]
        assert (stats["success"]["count"], stats["fail"]["count"]) == (ROUNDS, ROUNDS)


def test_traces_switched_on_later_see_every_request() -> None:
    with served(model_of(lambda x: x)) as (server, client):
        for k in range(ROUNDS):
            ask(client, k)
        setting = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"}
        assert client.ask("POST", "/v2/trace/setting", json.dumps(setting).encode()).status == 200
        before = server.app.traces._next_id
        for k in range(ROUNDS):
            assert values_of(ask(client, k)) == [k]
        assert server.app.traces._next_id == before + ROUNDS


def test_a_token_is_asked_for_each_time(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    file.chmod(0o600)
    tokens = Tokens(file)
    lines = {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"}
    with served(model_of(lambda x: x), tokens=tokens) as (_, client):
        for k in range(ROUNDS):
            assert values_of(ask(client, k, lines=lines)) == [k]
        file.write_text("fedcba9876543210fedcba9876543210\n")
        tokens.reload()
        assert ask(client, 1, lines=lines).status == 401


def test_coded_answers_and_other_datatypes_are_as_before() -> None:
    with served(model_of(lambda x: np.tile(x, 400))) as (_, client):
        for k in range(ROUNDS):
            answer = ask(client, k, lines={"Accept-Encoding": "gzip"})
            assert answer.headers["content-encoding"] == "gzip"
            assert gzip.decompress(answer.body).endswith(np.full(400, k, np.float32).tobytes())


@pytest.mark.parametrize("pause", [0, 3], ids=["odd offsets", "aligned"])
def test_tensors_anywhere_in_a_request(pause: int) -> None:
    with served(model_of(lambda x: 3 * x)) as (_, client):
        for fill in range(4):
            for k in range(4):
                assert values_of(ask(client, k, lines={"X-Fill": "a" * (fill + pause)})) == [3 * k]


def test_many_clients_at_once_each_get_their_own() -> None:
    """With joining, and with a timeout: what cannot be answered at once is answered in its turn."""
    options = ModelOptions(max_batch=8, timeout_ms=5000)
    package = Model(
        FakeSession(
            [TensorSpec("x", "float32", ("n", 2))], [TensorSpec("y", "float32", ("n", 2))], lambda f: {"y": f["x"] * 2}
        ),
        name="f",
        sample={"x": np.arange(4, dtype=np.float32).reshape(2, 2)},
        options=options,
    )
    wrong: list[object] = []

    def work(seed: int, url: str) -> None:
        random = np.random.default_rng(seed)
        with Client(url) as client:
            for _ in range(60):
                x = random.normal(size=(1, 2)).astype(np.float32)
                item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
                head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
                lines = {"Inference-Header-Content-Length": str(len(head))}
                got = values_of(client.ask("POST", "/v2/models/f/infer", head + x.tobytes(), lines))
                if got != (2 * x[0]).tolist():
                    wrong.append((x, got))

    with served(package) as (server, client):
        threads = [threading.Thread(target=work, args=(k, server.url)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        stats = client.ask("GET", "/v2/models/f/stats").json["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == 480
        assert stats["execution_count"] <= 480
