"""Bodies over HTTP to real models: the forms that tritonclient does not send."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tests.serve.running import Client, infer_body, tensor

TINY = "/v2/models/tiny/infer"
X = np.array([[1, 2, 3, 4], [0, 1, 0, 1]], np.float32)
SCORES = [3, 4, 5, 0.5, 1.5, 0.5]
RAW = {"Inference-Header-Content-Length": "0"}


def test_nested_and_flat_data(client: Client) -> None:
    for data in (X.tolist(), X.ravel().tolist()):
        answer = client.ask("POST", TINY, infer_body(tensor("x", [2, 4], data), id="a"))
        assert answer.headers["content-type"] == "application/json"
        assert answer.json == {
            "model_name": "tiny",
            "model_version": "1",
            "id": "a",
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [2, 3], "data": SCORES}],
        }


def test_a_raw_tensor_alone(client: Client) -> None:
    """Header 0: the body is the one input, and the answer's tensors are raw too."""
    answer = client.ask("POST", TINY, X.tobytes(), RAW)
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    assert answer.json["outputs"][0] == {
        "name": "scores",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": 24},
    }
    assert np.frombuffer(answer.body[length:], np.float32).tolist() == SCORES
    text = client.ask("POST", "/v2/models/words/infer", "né".encode(), RAW)
    assert text.body.endswith(b"\3\0\0\0n\xc3\xa9")
    assert client.ask("POST", TINY, X.tobytes()[:-1], RAW).status == 400
    assert client.ask("POST", "/v2/models/scaled/infer", X.tobytes(), RAW).status == 400


def test_nan_goes_in_as_binary_and_comes_out_as_null(client: Client) -> None:
    x = np.array([np.nan, np.inf, 1], np.float32)
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}
    ).encode()
    answer = client.ask(
        "POST", "/v2/models/scaled/infer", head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    )
    assert answer.json["outputs"][0]["data"] == [None, None, 2]


def test_compression_is_negotiated(client: Client) -> None:
    body = infer_body(tensor("x", [4000, 4], [1.0] * 16_000))
    plain = client.ask("POST", TINY, body)
    for coding in ("gzip", "deflate, gzip;q=0.9", "identity", "gzip;q=0"):
        answer = client.ask("POST", TINY, body, {"Accept-Encoding": coding})
        got = answer.headers.get("content-encoding", "")
        assert got == {"gzip": "gzip", "deflate, gzip;q=0.9": "deflate"}.get(coding, "")
        if got == "gzip":
            assert gzip.decompress(answer.body) == plain.body
    small = client.ask("POST", TINY, infer_body(tensor("x", [1, 4], [1] * 4)), {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers
    for coding, status in (("gzip", 200), ("br", 415), ("deflate", 400)):
        for content in (body, infer_body(tensor("x", [1, 4], [1] * 4))):
            packed = gzip.compress(content)
            assert client.ask("POST", TINY, packed, {"Content-Encoding": coding}).status == status
    bomb = gzip.compress(bytes(200 << 20), 9)
    assert client.ask("POST", TINY, bomb, {"Content-Encoding": "gzip"}).status == 413


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (infer_body(tensor("x", [2, 4], [1] * 7)), "7 values, its shape says (2,4)"),
        (infer_body(tensor("x", [2, 3], [1] * 6)), "got (2,3), this model accepts (batch,4)"),
        (infer_body(tensor("x", [2, 4], [[1, 2, 3, 4], [1, 2, 3]])), "ragged"),
        (infer_body(tensor("z", [1, 4], [1] * 4)), "'z' is not an input of this model; it has x"),
        (infer_body(), "Input 'x' is missing; expected x: float32[batch, 4]"),
        (infer_body(tensor("x", [1, 4], [1] * 4), outputs=[{"name": "z"}]), "'z' is not an output of 'tiny'"),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,', "truncated"),
        (b"", "truncated"),
    ],
)
def test_the_clients_faults_are_400_with_a_sentence(client: Client, body: bytes, words: str) -> None:
    answer = client.ask("POST", TINY, body)
    assert answer.status == 400
    assert words in answer.json["error"]
    assert client.ask("GET", "/v2/health/ready").status == 200


def test_a_header_length_that_is_no_number(client: Client) -> None:
    for value in ("", "x", "-1", "1e3", "99999999999999999999"):
        assert client.ask("POST", TINY, b"{}", {"Inference-Header-Content-Length": value}).status == 400
