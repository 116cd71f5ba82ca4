"""silero VAD: an ONNX file with a recurrent state, fed with 512 new samples and 64 of context at 16 kHz."""

import numpy as np

from edgekit import AudioPreprocess, ModelSpec, TensorSpec
from edgekit.preprocess import tensor_from_file
from tests.data import data_path

PREPROCESS = AudioPreprocess(sample_rate=16000, frame=512, context=64)


def samples(n, seed):
    frames = tensor_from_file(data_path("audio_silero_vad/test.wav"), PREPROCESS)
    rows = np.random.default_rng(seed).permutation(len(frames))[:n]
    return {"input": frames[rows], "state": np.zeros((2, len(rows), 128), np.float32)}


SPEC = ModelSpec(
    name="silero",
    build=lambda: data_path("audio_silero_vad/silero_vad_16k_op15.onnx"),
    inputs=(
        TensorSpec("input", "float32", ("batch", 576)),
        TensorSpec("state", "float32", (2, "batch", 128)),
        TensorSpec("sr", "int64", ()),
    ),
    samples=samples,
    preprocess={"input": PREPROCESS},
    states={"state": "stateN"},
    defaults={"sr": np.asarray(16000)},
)
