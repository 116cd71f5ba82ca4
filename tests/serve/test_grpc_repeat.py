"""Messages over gRPC that repeat in all but their tensors: each gets its own answer, whatever changes between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from edgekit.runtime.fake import FakeSession
from edgekit.serve.h2 import frames as h2
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.tensors import Array, Tensors, TensorSpec
from tests.serve.h2_client import H2Client, infer_message
from tests.serve.running import Running
from tests.serve.test_shortcut import ROUNDS, on_loop

INPUTS = [TensorSpec("a", "float32", ("n",)), TensorSpec("b", "int64", ("n",))]
OUTPUTS = [TensorSpec("y", "float32", ("m",)), TensorSpec("z", "int64", ("n",))]


def model_of(function: Callable[[Array, Array], tuple[Array, Array]], *, version: str = "1") -> Model:
    def run(feed: Tensors) -> Tensors:
        y, z = function(feed["a"], feed["b"])
        return {"y": np.asarray(y, np.float32), "z": np.asarray(z, np.int64)}

    sample = {"a": np.ones(1, np.float32), "b": np.ones(1, np.int64)}
    return Model(FakeSession(INPUTS, OUTPUTS, run), name="f", version=version, sample=sample)


@contextlib.contextmanager
def served(model: Model) -> Iterator[tuple[Server, InferenceServerClient]]:
    with Server([model], port=0, grpc_port=0) as server:
        client = InferenceServerClient(server.grpc_address)
        yield server, client
        client.close()


def ask(client: InferenceServerClient, a: list[float], b: list[int], **options: object) -> tuple[list, list]:
    inputs = [InferInput("a", [len(a)], "FP32"), InferInput("b", [len(b)], "INT64")]
    inputs[0].set_data_from_numpy(np.array(a, np.float32))
    inputs[1].set_data_from_numpy(np.array(b, np.int64))
    answer = client.infer("f", inputs, **options)
    return answer.as_numpy("y").tolist(), answer.as_numpy("z").tolist()


def test_each_message_gets_its_own_answer_and_is_counted() -> None:
    with served(model_of(lambda a, b: (2 * a, b + 1))) as (server, client):
        for k in range(ROUNDS):
            assert ask(client, [k, 0.5], [k, -k]) == ([2 * k, 1], [k + 1, 1 - k])
        assert ask(client, [1, 2], [3, 4], request_id="seven") == ([2, 4], [4, 5])
        stats = server.app.statistics("f")["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == ROUNDS + 1
        assert stats["execution_count"] == ROUNDS + 1


def test_shapes_that_depend_on_the_values() -> None:
    with served(model_of(lambda a, b: (a[a > 0], b))) as (_, client):
        for _ in range(ROUNDS):
            assert ask(client, [1, 2], [1, 2]) == ([1, 2], [1, 2])
            assert ask(client, [-1, 2], [1, 2]) == ([2], [1, 2])
            assert ask(client, [-1, -2], [1, 2]) == ([], [1, 2])


def test_another_model_in_its_place_answers_from_then_on() -> None:
    with served(model_of(lambda a, b: (a, b))) as (server, client):
        for _ in range(ROUNDS):
            assert ask(client, [5], [6]) == ([5], [6])
        on_loop(server, lambda: server.app.switch(model_of(lambda a, b: (10 * a, b))))
        for _ in range(ROUNDS):
            assert ask(client, [5], [6]) == ([50], [6])
        on_loop(server, lambda: server.app.withdraw("f", "1", "unloaded"))
        with pytest.raises(InferenceServerException, match="not ready"):
            ask(client, [5], [6])


def test_a_failure_is_this_calls_own() -> None:
    def touchy(a: Array, b: Array) -> tuple[Array, Array]:
        if a[0] < 0:
            raise ValueError("negative")
        return a, b

    with served(model_of(touchy)) as (_, client):
        for k in range(ROUNDS):
            assert ask(client, [k], [k]) == ([k], [k])
            with pytest.raises(InferenceServerException, match="log says more"):
                ask(client, [-1 - k], [k])


def test_fewer_outputs_are_another_question() -> None:
    with served(model_of(lambda a, b: (a, b))) as (_, client):
        inputs = [InferInput("a", [1], "FP32"), InferInput("b", [1], "INT64")]
        for k in range(ROUNDS):
            assert ask(client, [k], [k]) == ([k], [k])
            inputs[0].set_data_from_numpy(np.array([k], np.float32))
            inputs[1].set_data_from_numpy(np.array([k + 1], np.int64))
            answer = client.infer("f", inputs, outputs=[InferRequestedOutput("z")])
            assert answer.as_numpy("y") is None
            assert answer.as_numpy("z").tolist() == [k + 1]


def scores(x: Array) -> bytes:
    """What `tiny` answers, as raw bytes."""
    return np.ascontiguousarray(x[:, :3] + x[:, 3:] / 2, dtype=np.float32).tobytes()


@pytest.mark.parametrize("split", [False, True], ids=["in one piece", "head and body apart"])
def test_calls_on_one_connection_whichever_way_they_arrive(server: Running, split: bool) -> None:
    with H2Client(server.grpc) as client:
        for k in range(ROUNDS):
            x = np.full((1, 4), k, np.float32)
            head = h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * k + 1, client.block())
            body = h2.frame(h2.DATA, h2.END_STREAM, 2 * k + 1, infer_message(x))
            if split:
                client.send(head)
                time.sleep(0.02)
                client.send(body)
            else:
                client.send(head + body)
            fields, answer = client.answer(2 * k + 1)
            assert fields["grpc-status"] == "0"
            assert answer.endswith(scores(x))


def test_several_calls_in_one_piece_are_answered_in_their_order(server: Running) -> None:
    with H2Client(server.grpc) as client:
        xs = [np.full((1, 4), k, np.float32) for k in range(3 * ROUNDS)]
        calls = [
            h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * k + 1, client.block())
            + h2.frame(h2.DATA, h2.END_STREAM, 2 * k + 1, infer_message(x))
            for k, x in enumerate(xs)
        ]
        client.send(*calls[:2])
        client.send(*calls[2:])
        for k, x in enumerate(xs):
            assert client.answer(2 * k + 1)[1].endswith(scores(x))


def test_a_client_with_a_small_window_gets_its_answers_in_parts(server: Running) -> None:
    with H2Client(server.grpc, settings={h2.INITIAL_WINDOW_SIZE: 10}) as client:
        for k in range(ROUNDS):
            x, stream = np.full((1, 4), k, np.float32), 2 * k + 1
            client.call(stream, infer_message(x))
            first = client.until(h2.DATA, stream)
            assert len(first.payload) == 10
            client.send(h2.window_update(stream, 1000))
            assert client.answer(stream)[1].endswith(scores(x))


def test_a_stream_is_used_once_though_its_call_was_answered_at_once(server: Running) -> None:
    with H2Client(server.grpc) as client:
        for k in range(ROUNDS):
            client.call(2 * k + 1, infer_message())
            client.answer(2 * k + 1)
        client.call(1, infer_message())
        assert client.until(h2.GOAWAY).code == h2.Code.STREAM_CLOSED
