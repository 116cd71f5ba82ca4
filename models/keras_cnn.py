"""A Keras 3 model, as tutorials write it, on Keras's torch backend: there each layer is a `torch.nn.Module`.

edgekit takes it like any other module. Needs `pip install keras`. Keras reads its backend from the environment when it
is first imported, so this recipe sets KERAS_BACKEND, and refuses a Keras that was imported before with another one.
Images are NHWC, as Keras has them.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np
from torch import nn

from _data import digits
from _train import classification, finish, fit, random_affine, top1
from _zoo import Zoo, weights_file
from edgekit import ImagePreprocess, ModelSpec, TensorSpec, load_weights

PREPROCESS = ImagePreprocess(height=32, width=32, color="L", layout="NHWC", mean=(0.5,), std=(0.5,))


def make() -> nn.Module:
    """A Sequential of layers that every Keras tutorial uses."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    if keras.backend.backend() != "torch":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()} here; start Python with KERAS_BACKEND=torch")
    keras.utils.clear_session()  # names of layers are counted over the process, and weights are found by name
    keras.utils.set_random_seed(0)  # Keras draws first weights by a generator of its own
    layers = keras.layers
    return keras.Sequential([
        keras.Input((32, 32, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9), layers.ReLU(),
        layers.MaxPooling2D(),
        layers.SeparableConv2D(32, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.2),
        layers.Dense(10, name="logits"),
    ])  # fmt: skip


def build() -> nn.Module:
    return load_weights(make(), weights_file(__file__))


def samples(n: int, seed: int) -> dict[str, np.ndarray]:
    images = digits(PREPROCESS).train
    return {"image": images[np.random.default_rng(seed).permutation(len(images))[:n]]}


def evaluate(run, n: int) -> dict[str, float]:
    split = digits(PREPROCESS)
    return {"top1": top1(run, split.test, split.test_labels, n)}


SPEC = ModelSpec(
    name="keras_cnn",
    description="A Keras 3 model on scikit-learn's handwritten digits",
    license="Apache-2.0",
    task="classification",
    build=build,
    inputs=(TensorSpec("image", "float32", ("batch", 32, 32, 1)),),
    outputs=("logits",),
    labels=tuple(str(d) for d in range(10)),
    preprocess={"image": PREPROCESS},
    samples=samples,
    evaluate=evaluate,
    tolerance={"int8": 0.5, "fp16": 0.2},
)

ZOO = Zoo(group="classic CNNs", title="Keras 3 Sequential", data="scikit-learn's digits")


def train() -> nn.Module:
    split = digits(PREPROCESS)
    loss = classification()
    return fit(
        make,
        lambda net, images, labels: loss(partial(net, training=True), images, labels),  # Keras ignores net.train()
        (split.train, split.train_labels),
        epochs=20,
        augment=lambda images, labels: (random_affine(images.movedim(3, 1)).movedim(1, 3), labels),
    )


if __name__ == "__main__":
    finish(train(), SPEC, __file__)
