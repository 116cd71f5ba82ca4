"""Unmodified tritonclient over gRPC against a running server: every call of the service."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from edgekit import __version__
from edgekit.serve.grpc.schema import schema
from tests.serve import packages
from tests.serve.running import Running
from tests.serve.test_conformance import assert_same, example, oip

MODELS = {"tiny", "identity", "brain", "scaled", "words", "wide"}


def given(name: str, value: np.ndarray, dtype: str) -> Any:
    item = triton.InferInput(name, list(value.shape), oip(dtype))
    item.set_data_from_numpy(value)
    return item


def scores(x: np.ndarray) -> np.ndarray:
    return x[:, :3] + x[:, 3:] / 2


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    connection = triton.InferenceServerClient(server.grpc)
    yield connection
    connection.close()


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata(as_json=True)
    assert (server["name"], server["version"]) == ("edgekit", __version__)
    assert {"classification", "system_shared_memory", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("tiny", "1", as_json=True)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert model["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert (model["versions"], model["platform"]) == (["1"], "onnxruntime_onnx")


def test_configuration(client: Any) -> None:
    config = client.get_model_config("scaled").config
    assert [(i.name, i.data_type, list(i.dims), i.optional) for i in config.input] == [
        ("x", 11, [-1], False),
        ("scale", 11, [], True),
    ]
    assert client.get_model_config("words", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_STRING"
    assert config.parameters["variant"].string_value == "fp32"


def test_repository_index(client: Any) -> None:
    index = client.get_model_repository_index().models
    assert {m.name for m in index} == MODELS
    assert {m.state for m in index} == {"READY"}


def test_models_are_loaded_and_unloaded(client: Any) -> None:
    client.load_model("scaled")
    assert client.is_model_ready("scaled")
    client.unload_model("scaled")
    assert not client.is_model_ready("scaled")
    client.load_model("scaled")
    assert client.is_model_ready("scaled")
    with pytest.raises(InferenceServerException, match="NOT_FOUND.*'nothing'"):
        client.load_model("nothing")
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*file:1/model\.onnx"):
        client.load_model("tiny", files={"file:1/model.onnx": b"x"}, config="{}")


def test_statistics_count_requests(client: Any) -> None:
    x = np.ones((3, 4), np.float32)
    before = client.get_inference_statistics("tiny").model_stats[0]
    client.infer("tiny", [given("x", x, "float32")])
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [given("x", x[:, :2], "float32")])
    after = client.get_inference_statistics("tiny").model_stats[0]
    assert after.inference_count - before.inference_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert {m.name for m in client.get_inference_statistics().model_stats} == MODELS


def test_settings_of_log_and_trace(client: Any) -> None:
    assert client.get_log_settings().settings["log_error"].bool_param is True
    assert client.update_log_settings({"log_info": False}).settings["log_info"].bool_param is False
    assert client.update_log_settings({"log_info": True}).settings["log_info"].bool_param is True
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    assert list(client.get_trace_settings("tiny").settings["trace_rate"].value) == ["1000"]
    changed = client.update_trace_settings("tiny", {"trace_rate": "500"})
    assert list(changed.settings["trace_rate"].value) == ["500"]
    assert list(client.update_trace_settings("tiny", {"trace_rate": None}).settings["trace_rate"].value) == ["1000"]
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT.*trace_colour"):
        client.update_trace_settings(settings={"trace_colour": "red"})
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.get_trace_settings("nothing")


def test_every_datatype_comes_back_as_it_went(client: Any) -> None:
    inputs = [given(f"in_{d}", example(d), d) for d in packages.DTYPES]
    wanted = [triton.InferRequestedOutput(f"out_{d}") for d in packages.DTYPES]
    for outputs in (wanted, None):
        result = client.infer("identity", inputs, outputs=outputs)
        for dtype in packages.DTYPES:
            assert result.get_output(f"out_{dtype}").datatype == oip(dtype)
            assert_same(result.as_numpy(f"out_{dtype}"), example(dtype))
    inputs = [given(f"in_{d}", example(d), d) for d in ("bfloat16", "float32")]
    for _ in range(3):  # the second time from memory
        result = client.infer("brain", inputs)
        assert result.get_output("out_bfloat16").datatype == "BF16"
        assert_same(result.as_numpy("out_bfloat16"), example("bfloat16"))


def test_typed_contents_instead_of_raw_bytes(server: Running) -> None:
    fields = {"bool": "bool_contents", "int64": "int64_contents", "uint64": "uint64_contents"}
    fields |= {"float32": "fp32_contents", "float64": "fp64_contents", "string": "bytes_contents"}
    fields |= dict.fromkeys(("int8", "int16", "int32"), "int_contents")
    fields |= dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents")
    stub = service_pb2_grpc.GRPCInferenceServiceStub(_channel(server))
    request = service_pb2.ModelInferRequest(model_name="identity")
    for dtype in packages.DTYPES:
        value = np.ones((1, 2), np.float16) if dtype == "float16" else example(dtype)[:1]
        item = request.inputs.add(name=f"in_{dtype}", datatype=oip(dtype), shape=value.shape)
        if dtype != "float16":
            flat = [v.encode() if isinstance(v, str) else v for v in value.ravel().tolist()]
            getattr(item.contents, fields[dtype]).extend(flat)
    with pytest.raises(Exception, match="FP16 has no field in contents; send it in raw_input_contents"):
        stub.ModelInfer(request)
    small = service_pb2.ModelInferRequest(model_name="tiny")
    item = small.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    item.contents.fp32_contents.extend([1, 2, 3, 4])
    answer = stub.ModelInfer(small)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [3, 4, 5]
    words = service_pb2.ModelInferRequest(model_name="words")
    item = words.inputs.add(name="text", datatype="BYTES", shape=[2])
    item.contents.bytes_contents.extend(["é".encode(), b""])
    assert stub.ModelInfer(words).raw_output_contents[0] == b"\2\0\0\0\xc3\xa9\0\0\0\0"
    item.contents.bytes_contents.append(b"more")
    with pytest.raises(Exception, match="got 3 values in bytes_contents"):
        stub.ModelInfer(words)


def test_the_id_is_echoed(client: Any) -> None:
    result = client.infer("tiny", [given("x", np.eye(4, dtype=np.float32), "float32")], request_id="né 1")
    assert result.get_response().id == "né 1"
    assert result.as_numpy("scores").shape == (4, 3)


def test_classification_with_labels(client: Any) -> None:
    x = np.array([[1, 3, 2, 0], [5, 4, 6, 0]], np.float32)
    wanted = [triton.InferRequestedOutput("scores", class_count=2)]
    for _ in range(2):
        result = client.infer("tiny", [given("x", x, "float32")], outputs=wanted)
        assert result.as_numpy("scores").tolist() == [
            [b"3.000000:1:green", b"2.000000:2:blue"],
            [b"6.000000:2:blue", b"5.000000:0:red"],
        ]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [2, 100, 4096])
def test_compression_both_ways(client: Any, coding: str, rows: int) -> None:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    result = client.infer("tiny", [given("x", x, "float32")], compression_algorithm=coding)
    assert np.array_equal(result.as_numpy("scores"), scores(x))


def test_large_tensors_many_at_once(client: Any) -> None:
    got: queue.Queue[Any] = queue.Queue()
    for i in range(6):
        row = np.full((1, 1 << 20), i, np.float32)
        client.async_infer(
            "wide", [given("x", row, "float32")], lambda result, error: got.put((result, error)), request_id=str(i)
        )
    for _ in range(6):
        result, error = got.get(timeout=30)
        assert error is None
        assert (result.as_numpy("y") == int(result.get_response().id) + 1).all()


def test_a_stream_of_inferences_is_answered_in_order(client: Any) -> None:
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    sent = []
    for i in range(60):
        if i % 10 == 9:
            x = np.full((1, 1 << 20), i, np.float32)
            client.async_stream_infer("wide", [given("x", x, "float32")], request_id=str(i))
        elif i % 10 == 4:
            client.async_stream_infer("nothing", [given("x", np.ones((1, 4), np.float32), "float32")])
        else:
            x = np.full((2, 4), i, np.float32)
            client.async_stream_infer("tiny", [given("x", x, "float32")], request_id=str(i))
        sent.append(x)
    for i in range(60):
        result, error = got.get(timeout=30)
        if i % 10 == 4:
            assert "'nothing' is not served here" in str(error)
            continue
        assert error is None
        answer = result.get_response()
        assert answer.id == str(i)
        assert answer.parameters["triton_final_response"].bool_param is True
        wanted = sent[i] + 1 if i % 10 == 9 else scores(sent[i])
        assert np.array_equal(result.as_numpy(answer.outputs[0].name), wanted)
    client.stop_stream()


def test_system_shared_memory_in_and_out(client: Any) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    region = shm.create_shared_memory_region("r", "/edgekit_test", 256)
    try:
        shm.set_shared_memory_region(region, [x], offset=64)
        client.register_system_shared_memory("r", "/edgekit_test", 192, offset=64)
        assert dict(client.get_system_shared_memory_status(as_json=True)["regions"]) == {
            "r": {"name": "r", "key": "/edgekit_test", "offset": "64", "byte_size": "192"}
        }
        item = triton.InferInput("x", [2, 4], "FP32")
        item.set_shared_memory("r", 32)
        wanted = triton.InferRequestedOutput("scores")
        wanted.set_shared_memory("r", 64, offset=100)
        result = client.infer("tiny", [item], outputs=[wanted])
        output = result.get_output("scores")
        assert output.parameters["shared_memory_region"].string_param == "r"
        assert output.parameters["shared_memory_byte_size"].int64_param == 24
        assert np.array_equal(shm.get_contents_as_numpy(region, np.float32, (2, 3), offset=164), scores(x))
        assert np.array_equal(client.infer("tiny", [item]).as_numpy("scores"), scores(x))
        too_far = triton.InferInput("x", [2, 4], "FP32")
        too_far.set_shared_memory("r", 32, offset=161)
        with pytest.raises(InferenceServerException, match="would end at byte 193 of region 'r', which has 192"):
            client.infer("tiny", [too_far])
        with pytest.raises(InferenceServerException, match="registered already"):
            client.register_system_shared_memory("r", "/edgekit_test", 10)
        client.unregister_system_shared_memory("r")
        with pytest.raises(InferenceServerException, match="NOT_FOUND.*'r' is not registered"):
            client.infer("tiny", [item])
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(region)
    assert not client.get_system_shared_memory_status().regions


def test_cuda_shared_memory_is_refused_clearly(client: Any) -> None:
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED.*system shared memory"):
        client.register_cuda_shared_memory("r", b"\0" * 64, 0, 8)


def test_errors_carry_a_status_and_a_sentence(client: Any) -> None:
    x = np.ones((1, 4), np.float32)
    good, double = [given("x", x, "float32")], [given("x", x.astype(float), "float64")]
    other = [triton.InferRequestedOutput("other")]
    cases: list[tuple[str, str, Any]] = [
        ("NOT_FOUND", "'nöthing' is not served here; this server has", lambda: client.infer("nöthing", good)),
        ("NOT_FOUND", "has no version '9' here; it has '1'", lambda: client.infer("tiny", good, "9")),
        ("NOT_FOUND", "'nothing' is not served here", lambda: client.get_model_metadata("nothing")),
        ("INVALID_ARGUMENT", "got FP64, this model accepts FP32", lambda: client.infer("tiny", double)),
        ("INVALID_ARGUMENT", "Input 'x' is missing", lambda: client.infer("tiny", [])),
        ("INVALID_ARGUMENT", "'other' is not an output", lambda: client.infer("tiny", good, outputs=other)),
    ]
    for status, words, call in cases:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == f"StatusCode.{status}", words
        assert words in caught.value.message()


def test_the_asyncio_client(server: Running) -> None:
    import tritonclient.grpc.aio as aio

    async def talk() -> None:
        async with aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("tiny")
            x = np.arange(8192, dtype=np.float32).reshape(-1, 4)
            calls = [client.infer("tiny", [given("x", x + i, "float32")], request_id=str(i)) for i in range(20)]
            for i, result in enumerate(await asyncio.gather(*calls)):
                assert result.get_response().id == str(i)
                assert np.allclose(result.as_numpy("scores"), scores(x + i))

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for i in range(12):
                    yield {"model_name": "tiny", "inputs": [given("x", x + i, "float32")], "request_id": str(i)}

            got = [r async for r, error in client.stream_infer(requests()) if error is None]
            assert [r.get_response().id for r in got] == [str(i) for i in range(12)]
            assert np.allclose(got[7].as_numpy("scores"), scores(x + 7))

    asyncio.run(talk())


def test_every_method_of_the_service_has_an_answer(server: Running) -> None:
    channel = _channel(server)
    for path, method in schema().methods.items():
        call = channel.stream_stream if method.streaming else channel.unary_unary
        request = method.request()
        name = path.decode()
        ask = call(name, request_serializer=method.request.SerializeToString, response_deserializer=bytes)
        try:
            answer = list(ask(iter([request]))) if method.streaming else ask(request)
        except Exception as error:
            assert "UNKNOWN" not in str(error), name  # noqa: PT017
            assert "INTERNAL" not in str(error), name  # noqa: PT017
        else:
            assert answer is not None


def _channel(server: Running) -> Any:
    import grpc

    return grpc.insecure_channel(server.grpc)
