"""Pictures and recordings as requests: what they may promise, and what is answered."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import InputError
from edgekit.preprocess import AudioPreprocess, ImagePreprocess
from edgekit.runtime.fake import FakeSession
from edgekit.serve.media import rows_of
from edgekit.serve.messages import RequestError
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.tensors import Tensors, TensorSpec
from tests.serve.running import Client

PICTURE = ImagePreprocess(height=4, width=4, scale=1.0)
SOUND = AudioPreprocess(sample_rate=8000, frame=100)
INFER = "/v2/models/net/infer"


def colours(batch: object = "n", **options: Any) -> Model:
    """How red, green and blue a picture is."""
    x, y = TensorSpec("x", "float32", (batch, 3, 4, 4)), TensorSpec("y", "float32", (batch, 3))  # type: ignore[arg-type]
    session = FakeSession([x], [y], lambda feed: {"y": feed["x"].mean(axis=(2, 3)) / 100})
    return Model(session, name="net", preprocess={"x": PICTURE}, labels=("red", "green", "blue"), **options)


def listener(batch: object = "n", **options: Any) -> Model:
    """The loudest sample of each frame, and how many frames came before."""
    x, count = TensorSpec("x", "float32", (batch, 100)), TensorSpec("before", "float32", (batch,))  # type: ignore[arg-type]
    y, after = TensorSpec("y", "float32", (batch,)), TensorSpec("after", "float32", (batch,))  # type: ignore[arg-type]

    def run(feed: Tensors) -> Tensors:
        assert batch == "n" or len(feed["x"]) == 1
        return {"y": feed["x"].max(axis=1), "after": feed["before"] + 1}

    states = {"before": "after"} if "states" in options else {}
    defaults = {} if states else {"before": np.zeros(1, np.float32)}
    return Model(
        FakeSession([x, count], [y, after], run), name="net", preprocess={"x": SOUND}, defaults=defaults, states=states
    )


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return out.getvalue()


def test_a_classifier_answers_its_best_labels() -> None:
    with Server([colours(task="classification")], port=0) as server, Client(server.url) as client:
        answer = client.ask("POST", f"{INFER}?top=2", png((10, 200, 40)), {"Content-Type": "image/png"})
        assert answer.status == 200
        (row,) = answer.json["rows"]
        assert [r["label"] for r in row] == ["green", "blue"]
        assert 1 > row[0]["probability"] > row[1]["probability"] > 0
        assert len(client.ask("POST", INFER, png((1, 2, 3)), {"Content-Type": "image/png"}).json["rows"][0]) == 3
        for top in ("0", "-1", "many", "1" * 30, "1" + "&a=1" * 20):
            answer = client.ask("POST", f"{INFER}?top={top}", png((1, 2, 3)), {"Content-Type": "image/png"})
            assert answer.status == 400


def test_another_model_answers_its_outputs() -> None:
    with Server([colours()], port=0) as server, Client(server.url) as client:
        answer = client.ask("POST", INFER, png((100, 200, 0)), {"Content-Type": "IMAGE/PNG"})
        assert answer.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 0]}]


@pytest.mark.parametrize("states", [True, False])
def test_the_frames_of_a_recording_run_in_order(states: bool) -> None:
    loudness = np.repeat([0.25, 0.5, 0.75], 100)
    model = listener(states=True) if states else listener(1)
    with Server([model], port=0) as server, Client(server.url) as client:
        for _ in range(2):
            answer = client.ask("POST", INFER, wav(loudness), {"Content-Type": "audio/wav"})
            outputs = {o["name"]: o["data"] for o in answer.json["outputs"]}
            np.testing.assert_allclose(outputs["y"], [0.25, 0.5, 0.75], atol=1e-3)
        assert ("after" in outputs) is not states
    assert model.stats.success.count == 6
    assert len(model.sequences) == 0


def claims(width: int, height: int) -> bytes:
    """A PNG whose head promises more than it has."""
    data = bytearray(png((0, 0, 0)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (claims(20_000, 3_000), "20000x3000 pixels; at most 50000000"),
        (claims(100_000, 100_000), "not a picture that can be decoded|pixels; at most"),
        (b"", "not a picture that can be decoded"),
        (png((0, 0, 0))[:40], "decoded"),
    ],
)
def test_pictures_that_promise_too_much(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows_of(colours(), b"image/png", body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (wav(np.zeros(10), rate=1), "1 samples a second; expected 4000 to 384000"),
        (wav(np.zeros(4000 * 601), rate=4000), "601 s long; at most 600 s"),
        (b"RIFF", "not a PCM WAV file"),
        (wav(np.zeros(0)), "holds no samples"),
    ],
)
def test_recordings_that_promise_too_much(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows_of(listener(), b"audio/wav", body)


def test_a_file_of_another_kind_is_415() -> None:
    plain = Model(FakeSession([], [], lambda feed: {}), name="plain")
    for model, kind, words in (
        (colours(), b"audio/wav", "takes a picture"),
        (listener(), b"image/png", "takes a recording"),
        (plain, b"image/png", "takes tensors only: its package declares preprocessing for no inputs"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            rows_of(model, kind, b"")
        assert caught.value.status == 415
