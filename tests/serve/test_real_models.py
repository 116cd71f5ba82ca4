"""Real models behind a real server: a classifier of photos, a voice detector with state, digits from many clients."""

from __future__ import annotations

import io
import json
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton

from edgekit.package import Package
from edgekit.preprocess import AudioPreprocess, ImagePreprocess
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import TensorSpec
from tests.data import data_path
from tests.serve.packages import mnist_images, mnist_package, write_package
from tests.serve.running import Client, Running, served
from tests.serve.test_library import versioned

SILERO = AudioPreprocess(sample_rate=16000, frame=512, context=64)
PHOTO = ImagePreprocess(height=224, width=224, color="BGR", scale=1.0, mean=(103.94, 116.78, 123.68))


def silero_package(path: Path) -> Package:
    """The voice detector, with its state declared and one frame of speech as sample."""
    model = data_path("audio_silero_vad/silero_vad_16k_op15.onnx")
    inputs = (
        TensorSpec("input", "float32", ("batch", 576)),
        TensorSpec("state", "float32", (2, "batch", 128)),
        TensorSpec("sr", "int64", ()),
    )
    outputs = (TensorSpec("output", "float32", ("batch", 1)), TensorSpec("stateN", "float32", (2, "batch", 128)))
    frames = speech()[40:42]
    feed = {"input": frames, "state": np.zeros((2, 2, 128), np.float32)}
    with OrtSession(model, threads=1) as session:
        reference = session.run({**feed, "sr": np.array(16000)})
    return write_package(
        path,
        model.read_bytes(),
        inputs=inputs,
        outputs=outputs,
        samples=(feed, reference),
        states={"state": "stateN"},
        defaults={"sr": 16000},
        preprocess={"input": SILERO},
        task="detection",
    )


def squeezenet_package(path: Path) -> Package:
    """SqueezeNet with its preprocessing and the names of ImageNet's classes."""
    names = data_path("img_samples/imagenet_labels.txt").read_text().splitlines()
    spec = (
        (TensorSpec("data_0", "float32", (1, 3, 224, 224)),),
        (TensorSpec("softmaxout_1", "float32", (1, 1000, 1, 1)),),
    )
    return write_package(
        path,
        data_path("clf_squeezenet11/squeezenet11_fp32.onnx").read_bytes(),
        inputs=spec[0],
        outputs=spec[1],
        labels="\n".join(names[-1000:]).encode(),
        preprocess={"data_0": PHOTO},
    )


def speech(seconds: float = 4.0) -> np.ndarray:
    """Frames of real speech as silero takes them, (n, 576)."""
    return SILERO.from_bytes(wav(seconds), name="test.wav")


def wav(seconds: float) -> bytes:
    """The first seconds of the recording as a WAV file."""
    out = io.BytesIO()
    with wave.open(str(data_path("audio_silero_vad/test.wav"))) as source, wave.open(out, "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(round(seconds * source.getframerate())))
    return out.getvalue()


def reference(frames: np.ndarray) -> np.ndarray:
    """Probabilities of speech, frame after frame, from ONNX Runtime itself."""
    state, out = np.zeros((2, 1, 128), np.float32), []
    with OrtSession(data_path("audio_silero_vad/silero_vad_16k_op15.onnx"), threads=1) as session:
        for frame in frames:
            got = session.run({"input": frame[None], "state": state, "sr": np.array(16000)})
            state = got["stateN"]
            out.append(got["output"][0, 0])
    return np.array(out)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with all of them."""
    folder = tmp_path_factory.mktemp("real")
    silero_package(folder / "silero.edge")
    squeezenet_package(folder / "squeezenet.edge")
    mnist_package(folder / "mnist.edge")
    with served(folder, options=("--threads", "1", "--grpc-port", "0")) as running:
        yield running


def frame_input(module: object, frame: np.ndarray) -> list[object]:
    tensor = module.InferInput("input", [1, 576], "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(frame[None])
    return [tensor]


def test_speech_frame_by_frame_with_the_state_kept_here(real: Running) -> None:
    frames = speech()
    wanted = reference(frames)
    assert wanted.max() > 0.9
    with triton.InferenceServerClient(real.address) as client:
        got = []
        for i, frame in enumerate(frames):
            answer = client.infer(
                "silero",
                frame_input(triton, frame),
                sequence_id=42,
                sequence_start=i == 0,
                sequence_end=i == len(frames) - 1,
            )
            got.append(answer.as_numpy("output")[0, 0])
            assert answer.as_numpy("stateN") is None
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_many_streams_of_speech_at_once_do_not_mix(real: Running) -> None:
    frames = speech(2.0)
    shifts = range(0, 12, 2)
    wanted = {shift: reference(frames[shift:]) for shift in shifts}
    got: dict[int, list[float]] = {shift: [] for shift in shifts}

    def speak(shift: int) -> None:
        with triton.InferenceServerClient(real.address) as client:
            own = frames[shift:]
            for i, frame in enumerate(own):
                answer = client.infer(
                    "silero",
                    frame_input(triton, frame),
                    sequence_id=f"speaker-{shift}",
                    sequence_start=i == 0,
                    sequence_end=i == len(own) - 1,
                )
                got[shift].append(float(answer.as_numpy("output")[0, 0]))

    threads = [threading.Thread(target=speak, args=(shift,)) for shift in shifts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for shift in shifts:
        np.testing.assert_allclose(got[shift], wanted[shift], atol=1e-4)
    with triton.InferenceServerClient(real.address) as client:
        (stats,) = client.get_inference_statistics("silero")["model_stats"]
    assert sum(b["batch_size"] * b["compute_infer"]["count"] for b in stats["batch_stats"]) == stats["inference_count"]
    assert stats["execution_count"] == sum(b["compute_infer"]["count"] for b in stats["batch_stats"])


def test_a_sequence_over_grpc_goes_on_over_http(real: Running) -> None:
    frames = speech(1.0)[:6]
    wanted = reference(frames)
    with triton.InferenceServerClient(real.address) as http, triton_grpc.InferenceServerClient(real.grpc) as grpc:
        for i, frame in enumerate(frames):
            client, module = ((http, triton), (grpc, triton_grpc))[i % 2]
            answer = client.infer("silero", frame_input(module, frame), sequence_id=5, sequence_start=i == 0)
            np.testing.assert_allclose(answer.as_numpy("output")[0, 0], wanted[i], atol=1e-5)


def test_a_recording_is_sent_as_it_is(real: Running) -> None:
    with Client(real.url, timeout_s=30) as client:
        answer = client.ask("POST", "/v2/models/silero/infer", wav(4.0), {"Content-Type": "audio/wav"})
    assert answer.status == 200
    (output,) = answer.json["outputs"]
    assert output["name"] == "output"
    np.testing.assert_allclose(output["data"], reference(speech()), atol=1e-5)


def test_a_photo_is_sent_as_it_is_and_comes_back_as_labels(real: Running) -> None:
    photo = data_path("img_samples/parrot.jpg").read_bytes()
    with Client(real.url, timeout_s=30) as client:
        answer = client.ask("POST", "/v2/models/squeezenet/infer?top=3", photo, {"Content-Type": "image/jpeg"})
        assert answer.status == 200
        (row,) = answer.json["rows"]
        assert len(row) == 3
        assert row[0]["label"] == "macaw"
        assert row[0]["probability"] > row[1]["probability"] > row[2]["probability"]
        for body, kind, status, words in (
            (photo[:2000], "image/jpeg", 400, "decoded"),
            (b"no picture", "image/png", 400, "not a picture that can be decoded"),
            (wav(0.1), "audio/wav", 415, "'squeezenet' takes a picture (image/jpeg, image/png); got audio/wav"),
        ):
            answer = client.ask("POST", "/v2/models/squeezenet/infer", body, {"Content-Type": kind})
            assert answer.status == status
            assert words in answer.json["error"]
        answer = client.ask("POST", "/v2/models/mnist/infer", photo, {"Content-Type": "image/jpeg"})
        assert answer.status == 415
        assert "takes tensors only" in answer.json["error"]
        answer = client.ask("POST", "/v2/models/squeezenet/infer?top=0", photo, {"Content-Type": "image/jpeg"})
        assert answer.status == 400


def test_digits_from_many_clients_are_right(real: Running) -> None:
    images, _ = mnist_images(64)
    with OrtSession(data_path("mnist_models/mnist_torch_op16.onnx"), threads=1) as session:
        name, output = session.inputs[0].name, session.outputs[0].name
        wanted = np.concatenate([session.run({name: images[i : i + 1]})[output] for i in range(64)])
    wrong: list[int] = []

    def ask(own: range) -> None:
        with triton.InferenceServerClient(real.address) as client:
            for i in own:
                tensor = triton.InferInput(name, [1, 1, 28, 28], "FP32")
                tensor.set_data_from_numpy(images[i : i + 1])
                got = client.infer("mnist", [tensor]).as_numpy(output)
                if not np.allclose(got, wanted[i : i + 1], atol=1e-4):
                    wrong.append(i)

    threads = [threading.Thread(target=ask, args=(range(k, 64, 8),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    with triton.InferenceServerClient(real.address) as client:
        stats = client.get_inference_statistics("mnist")["model_stats"][0]
    assert stats["inference_count"] >= 64
    assert sum(b["batch_size"] * b["compute_infer"]["count"] for b in stats["batch_stats"]) == stats["inference_count"]


def test_a_package_is_replaced_under_load_without_a_wrong_or_lost_answer(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    versioned(folder / "net.edge", "net", "1", 1.0)
    stop = threading.Event()
    seen: list[tuple[str, float]] = []
    faults: list[str] = []
    with served(folder, options=("--watch", "0.1", "--grpc-port", "off")) as running:

        def ask() -> None:
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}]})
            with Client(running.url) as client:
                while not stop.is_set():
                    answer = client.ask("POST", "/v2/models/net/infer", body.encode())
                    if answer.status == 200:
                        seen.append((answer.json["model_version"], answer.json["outputs"][0]["data"][0]))
                    else:
                        faults.append(answer.json["error"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 10
        while not seen and time.monotonic() < end:
            time.sleep(0.01)
        for version in range(2, 6):
            versioned(folder / "net.edge", "net", str(version), float(version))
            end = time.monotonic() + 10
            while seen[-1][0] != str(version) and time.monotonic() < end:
                time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not faults
    assert {v for v, _ in seen} == {"1", "2", "3", "4", "5"}
    assert all(float(v) == score for v, score in seen)
