"""Unmodified tritonclient against a running server: every call that this server answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from edgekit import __version__
from tests.serve import packages
from tests.serve.running import Running, served
from tests.serve.test_library import versioned
from tests.tiny import tiny_package

NUMPY = {
    **{d: np.dtype(d) for d in packages.DTYPES if d not in ("bfloat16", "string")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "string": np.dtype(object),
}
OIP = {"bool": "BOOL", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64", "string": "BYTES"}


def oip(dtype: str) -> str:
    return OIP.get(dtype, dtype.upper())


def example(dtype: str) -> np.ndarray:
    """Two rows of two values that only this type gets right."""
    if dtype == "string":
        return np.array([["añb", ""], ["c\x00d", "日本"]], object)
    if dtype == "bool":
        return np.array([[True, False], [False, True]])
    if "int" in dtype:
        limits = np.iinfo(dtype)
        return np.array([[limits.min, limits.max], [0, 1]], dtype)
    return np.array([[1.5, -0.0], [2.0**-14, 240.0]], NUMPY[dtype])


def given(name: str, value: np.ndarray, dtype: str, *, binary: bool = True) -> Any:
    item = triton.InferInput(name, list(value.shape), oip(dtype))
    item.set_data_from_numpy(value, binary_data=binary)
    return item


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    if wanted.dtype == object:
        got = np.array([x.decode() if isinstance(x, bytes) else x for x in got.ravel()], object).reshape(got.shape)
    assert got.shape == wanted.shape
    assert (got == wanted).all()
    if wanted.dtype.kind == "f":
        assert (np.signbit(got) == np.signbit(wanted)).all()


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    connection = triton.InferenceServerClient(server.address)
    yield connection
    connection.close()


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("edgekit", __version__)
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
    model = client.get_model_metadata("tiny", model_version="1")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert model["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
    assert (model["versions"], model["platform"]) == (["1"], "onnxruntime_onnx")
    datatypes = {i["datatype"] for i in client.get_model_metadata("identity")["inputs"]}
    datatypes |= {i["datatype"] for i in client.get_model_metadata("brain")["inputs"]}
    assert datatypes == {oip(d) for d in (*packages.DTYPES, "bfloat16")}


def test_configuration(client: Any) -> None:
    config = client.get_model_config("scaled")
    assert [(i["name"], i["data_type"], i["dims"], i["optional"]) for i in config["input"]] == [
        ("x", "TYPE_FP32", [-1], False),
        ("scale", "TYPE_FP32", [], True),
    ]
    assert client.get_model_config("words")["input"][0]["data_type"] == "TYPE_STRING"
    assert client.get_model_config("tiny")["parameters"]["variant"]["string_value"] in ("fp32", "int8")


def test_repository_index(client: Any) -> None:
    index = client.get_model_repository_index()
    assert {m["name"] for m in index} == {"tiny", "identity", "brain", "scaled", "words", "wide"}
    assert {m["state"] for m in index} == {"READY"}


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny.edge")
    with served(tmp_path) as running, triton.InferenceServerClient(running.address) as client:
        versioned(tmp_path / "new.edge", "new", "1")
        client.load_model("new", config='{"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [2, 4]}}')
        assert client.is_model_ready("new")
        assert client.get_model_config("new")["dynamic_batching"]["preferred_batch_size"] == [2, 4]
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        states = {m["name"]: (m["state"], m["reason"]) for m in client.get_model_repository_index()}
        assert states == {"new": ("READY", ""), "tiny": ("UNAVAILABLE", "unloaded")}
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        for name, options, words in (
            ("other", {}, "'other' is not among this server's packages"),
            ("tiny", {"config": '{"colour": 1}'}, "unknown field `colour`"),
            ("tiny", {"files": {"file:1/model.onnx": b"x"}, "config": "{}"}, "Files are not taken over the network"),
        ):
            with pytest.raises(InferenceServerException, match=words):
                client.load_model(name, **options)
        assert client.is_model_ready("tiny")


def test_a_server_open_to_others_is_not_controlled_by_them(tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny.edge")
    with (
        served(tmp_path, options=("--no-control",)) as running,
        triton.InferenceServerClient(running.address) as client,
    ):
        with pytest.raises(InferenceServerException, match="does not load or unload models on request") as caught:
            client.unload_model("tiny")
        assert caught.value.status() == "403"
        assert client.is_model_ready("tiny")


def test_statistics_count_requests(client: Any) -> None:
    x = np.ones((3, 4), np.float32)
    before = client.get_inference_statistics("tiny")["model_stats"][0]
    client.infer("tiny", [given("x", x, "float32")])
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [given("x", x[:, :2], "float32")])
    after = client.get_inference_statistics("tiny")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    stats = after["inference_stats"]
    assert stats["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert stats["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert 0 < stats["compute_infer"]["ns"] <= stats["success"]["ns"]
    assert len(client.get_inference_statistics()["model_stats"]) == 6


@pytest.mark.parametrize("into", ["binary", "json"])
@pytest.mark.parametrize("out", ["binary", "json"])
def test_every_datatype_comes_back_as_it_went(client: Any, into: str, out: str) -> None:
    inputs = [given(f"in_{d}", example(d), d, binary=into == "binary") for d in packages.DTYPES]
    wanted = [triton.InferRequestedOutput(f"out_{d}", binary_data=out == "binary") for d in packages.DTYPES]
    result = client.infer("identity", inputs, outputs=wanted)
    for dtype in packages.DTYPES:
        assert result.get_output(f"out_{dtype}")["datatype"] == oip(dtype)
        assert_same(result.as_numpy(f"out_{dtype}"), example(dtype))


@pytest.mark.parametrize("out", ["binary", "json"])
def test_bfloat16_comes_back_as_it_went(client: Any, out: str) -> None:
    inputs = [given(f"in_{d}", example(d), d) for d in ("bfloat16", "float32")]
    wanted = [triton.InferRequestedOutput(f"out_{d}", binary_data=out == "binary") for d in ("bfloat16", "float32")]
    result = client.infer("brain", inputs, outputs=wanted)
    assert result.get_output("out_bfloat16")["datatype"] == "BF16"
    assert_same(result.as_numpy("out_bfloat16"), example("bfloat16"))
    assert_same(result.as_numpy("out_float32"), example("float32"))


def test_forms_mix_in_one_request(client: Any) -> None:
    inputs = [given(f"in_{d}", example(d), d, binary=i % 2 == 0) for i, d in enumerate(packages.DTYPES)]
    wanted = [triton.InferRequestedOutput(f"out_{d}", binary_data=i % 3 == 0) for i, d in enumerate(packages.DTYPES)]
    result = client.infer("identity", inputs, outputs=wanted[::-1])
    assert [o["name"] for o in result.get_response()["outputs"]] == [w.name() for w in wanted[::-1]]
    for i, dtype in enumerate(packages.DTYPES):
        output = result.get_output(f"out_{dtype}")
        assert ("data" in output) == (i % 3 != 0)
        assert_same(result.as_numpy(f"out_{dtype}"), example(dtype))


def test_the_id_is_echoed_and_outputs_default_to_binary(client: Any) -> None:
    result = client.infer("tiny", [given("x", np.eye(4, dtype=np.float32), "float32")], request_id="né 1")
    assert result.get_response()["id"] == "né 1"
    assert "binary_data_size" in result.get_output("scores")["parameters"]
    assert result.as_numpy("scores").shape == (4, 3)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [2, 4096])
def test_compression_both_ways(client: Any, coding: str, rows: int) -> None:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    result = client.infer(
        "tiny",
        [given("x", x, "float32")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("scores"), x[:, :3] + x[:, 3:] / 2)


def test_classification_with_labels(client: Any) -> None:
    x = np.array([[1, 3, 2, 0], [5, 4, 6, 0]], np.float32)
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
        result = client.infer("tiny", [given("x", x, "float32")], outputs=wanted)
        assert_same(
            result.as_numpy("scores"),
            np.array(
                [["3.000000:1:green", "2.000000:2:blue"], ["6.000000:2:blue", "5.000000:0:red"]],
                object,
            ),
        )


def test_inputs_with_defaults_may_be_left_out(client: Any) -> None:
    x = given("x", np.array([1, 2], np.float32), "float32")
    assert client.infer("scaled", [x]).as_numpy("y").tolist() == [2, 4]
    ten = given("scale", np.array(10, np.float32), "float32")
    assert client.infer("scaled", [x, ten]).as_numpy("y").tolist() == [10, 20]


def test_a_large_tensor_and_many_at_once(server: Running) -> None:
    client = triton.InferenceServerClient(server.address, concurrency=4)
    rows = [np.full((1, 1 << 20), i, np.float32) for i in range(6)]
    waiting = [
        client.async_infer("wide", [given("x", row, "float32")], request_id=str(i)) for i, row in enumerate(rows)
    ]
    for i, item in enumerate(waiting):
        result = item.get_result()
        assert result.get_response()["id"] == str(i)
        assert (result.as_numpy("y") == i + 1).all()
    client.close()


def test_errors_carry_a_status_and_a_sentence(client: Any) -> None:
    x = np.ones((1, 4), np.float32)
    good, double = [given("x", x, "float32")], [given("x", x.astype(float), "float64")]
    cases: list[tuple[str, str, Any]] = [
        (
            "404",
            "'nothing' is not served here; this server has",
            lambda: client.infer("nothing", good),
        ),
        ("404", "has no version '9' here; it has '1'", lambda: client.infer("tiny", [given("x", x, "float32")], "9")),
        ("404", "'nothing' is not served here", lambda: client.get_model_metadata("nothing")),
        ("404", "'nothing' is not served here", lambda: client.get_model_config("nothing")),
        (
            "400",
            "got FP64, this model accepts FP32",
            lambda: client.infer("tiny", double),
        ),
        ("400", "got (4), this model accepts (batch,4)", lambda: client.infer("tiny", [given("x", x[0], "float32")])),
        ("400", "Input 'y' is not an input", lambda: client.infer("tiny", [given("y", x, "float32")])),
        ("400", "Input 'x' is missing", lambda: client.infer("tiny", [])),
        (
            "400",
            "Output 'other' is not an output",
            lambda: client.infer("tiny", [given("x", x, "float32")], outputs=[triton.InferRequestedOutput("other")]),
        ),
        ("404", "'r' is not registered", lambda: client.get_system_shared_memory_status("r")),
        ("501", "shares no CUDA memory", lambda: client.register_cuda_shared_memory("r", "eHh4" * 21 + "eA==", 0, 8)),
    ]
    for status, words, call in cases:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == status, words
        assert words in caught.value.message()


def test_system_shared_memory_in_and_out(client: Any) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    region = shm.create_shared_memory_region("h", "/edgekit_test_http", 256)
    try:
        shm.set_shared_memory_region(region, [x], offset=64)
        client.register_system_shared_memory("h", "/edgekit_test_http", 192, offset=64)
        assert client.get_system_shared_memory_status() == [
            {"name": "h", "key": "/edgekit_test_http", "offset": 64, "byte_size": 192}
        ]
        item = triton.InferInput("x", [2, 4], "FP32")
        item.set_shared_memory("h", 32)
        wanted = triton.InferRequestedOutput("scores")
        wanted.set_shared_memory("h", 64, offset=100)
        for _ in range(2):
            shm.set_shared_memory_region(region, [x], offset=64)
            result = client.infer("tiny", [item], outputs=[wanted])
            assert result.get_output("scores")["parameters"] == {
                "shared_memory_region": "h",
                "shared_memory_offset": 100,
                "shared_memory_byte_size": 24,
                "binary_data_size": 0,
            }
            got = shm.get_contents_as_numpy(region, np.float32, (2, 3), offset=164)
            assert np.array_equal(got, x[:, :3] + x[:, 3:] / 2)
            assert np.array_equal(client.infer("tiny", [item]).as_numpy("scores"), x[:, :3] + x[:, 3:] / 2)
            x = x * 2 + 1
        wanted.set_shared_memory("h", 20)
        with pytest.raises(InferenceServerException, match="'scores' has 24 bytes, shared_memory_byte_size is 20"):
            client.infer("tiny", [item], outputs=[wanted])
        item.set_shared_memory("other", 32)
        with pytest.raises(InferenceServerException, match="'other' is not registered"):
            client.infer("tiny", [item])
        client.unregister_system_shared_memory("h")
        client.unregister_cuda_shared_memory()
        assert client.get_cuda_shared_memory_status() == []
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(region)


def test_the_asyncio_client(server: Running) -> None:
    aio = pytest.importorskip("tritonclient.http.aio", reason="needs aiohttp", exc_type=ImportError)

    async def talk() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("tiny")
            assert (await client.get_server_metadata())["name"] == "edgekit"
            assert (await client.get_model_metadata("tiny"))["name"] == "tiny"
            assert (await client.get_model_config("tiny"))["name"] == "tiny"
            assert len(await client.get_model_repository_index()) == 6
            assert (await client.get_inference_statistics("tiny"))["model_stats"][0]["name"] == "tiny"
            x = np.arange(8192, dtype=np.float32).reshape(-1, 4)
            calls = [client.infer("tiny", [given("x", x + i, "float32")], request_id=str(i)) for i in range(20)]
            for i, result in enumerate(await asyncio.gather(*calls)):
                assert result.get_response()["id"] == str(i)
                y = x + i
                assert np.allclose(result.as_numpy("scores"), y[:, :3] + y[:, 3:] / 2)
            with pytest.raises(InferenceServerException, match="is missing"):
                await client.infer("tiny", [])

    asyncio.run(talk())


def test_a_real_classifier_of_real_digits(tmp_path: Path) -> None:
    packages.mnist_package(tmp_path / "mnist.edge")
    images, classes = packages.mnist_images(200)
    with served(tmp_path / "mnist.edge") as running:
        client = triton.InferenceServerClient(running.address)
        name = client.get_model_metadata("mnist")["inputs"][0]["name"]
        (output,) = (o["name"] for o in client.get_model_metadata("mnist")["outputs"])
        wanted = [triton.InferRequestedOutput(output, class_count=1)]
        right = 0
        for image, label in zip(images[:, None], classes):
            result = client.infer("mnist", [given(name, image, "float32")], outputs=wanted)
            (text,) = result.as_numpy(output).ravel()
            assert text.split(b":")[2] == packages.DIGITS[int(text.split(b":")[1])].encode()
            right += int(text.split(b":")[1]) == label
        client.close()
    assert right >= 190
