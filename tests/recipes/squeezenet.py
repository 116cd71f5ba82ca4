"""SqueezeNet 1.1 as an ONNX file of opset 7, with the preprocessing it was trained with."""

import numpy as np

from edgekit import ImagePreprocess, ModelSpec, TensorSpec
from edgekit.preprocess import tensor_from_file
from tests.data import data_path

PREPROCESS = ImagePreprocess(
    height=224, width=224, color="BGR", scale=1.0, mean=(103.94, 116.78, 123.68), resize="crop", interpolation="bicubic"
)
PICTURES = ("grace_hopper.bmp", "cat.bmp", "parrot.jpg")


def samples(n, seed):
    pictures = [tensor_from_file(data_path(f"img_samples/{name}"), PREPROCESS) for name in PICTURES]
    return {"data_0": np.concatenate(pictures[:n])}


SPEC = ModelSpec(
    name="squeezenet",
    task="classification",
    build=lambda: data_path("clf_squeezenet11/squeezenet11_fp32.onnx"),
    inputs=(TensorSpec("data_0", "float32", (1, 3, 224, 224)),),
    samples=samples,
    labels=tuple(data_path("img_samples/imagenet_labels.txt").read_text().splitlines()[1:]),  # without "background"
    preprocess={"data_0": PREPROCESS},
)
