"""Preprocessing in the graph gives what the declared preprocessing of files gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit import ImagePreprocess, ModelSpec, TensorSpec, with_preprocess
from edgekit.cli.export import parse_frame
from edgekit.errors import RecipeError, UsageError
from edgekit.export.build import export
from edgekit.export.declared import Declared
from edgekit.export.frames import Frame
from edgekit.export.torch_runner import TorchRunner
from edgekit.inputs import tensors_from_file
from edgekit.recipe import spec_from_recipe
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Feed, Tensors
from tests.conftest import RECIPE

STEP = 1 / 255


def spec_of(how: ImagePreprocess, **changes: Any) -> ModelSpec:
    """A model that returns its input."""
    channels = 1 if how.color == "L" else 3
    shape = (channels, how.height, how.width) if how.layout == "NCHW" else (how.height, how.width, channels)
    given: dict[str, Any] = {
        "name": "same", "build": torch.nn.Identity, "outputs": ("y",), "preprocess": {"image": how},
        "inputs": (TensorSpec("image", how.dtype, ("batch", *shape)),),
    }  # fmt: skip
    return ModelSpec(**{**given, **changes})


def through(spec: ModelSpec, feed: Feed) -> np.ndarray:
    return TorchRunner(spec.build(), spec.inputs, model=spec.name, outputs=spec.outputs).run(feed)["y"]


def picture(height: int, width: int) -> Image.Image:
    """Colours that change slowly and quickly."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 3 + 1), np.cos(y / 5 + x / 7), np.sin((x + y) / 2)]
    return Image.fromarray(np.stack([127 + 120 * w for w in waves], axis=2).astype(np.uint8))


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_the_graph_does_what_is_declared_for_files(resize: Any, size: tuple[int, int]) -> None:
    for model, camera in itertools.product(("RGB", "BGR", "L"), repeat=2):
        mean, std = ((0.4,), (0.25,)) if model == "L" else ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
        how = ImagePreprocess(height=size[0], width=size[1], color=model, resize=resize, pad=114, mean=mean, std=std)  # type: ignore[arg-type]
        spec = with_preprocess(spec_of(how), height=45, width=60, color=camera)  # type: ignore[arg-type]
        seen = picture(45, 60).convert("L") if camera == "L" else picture(45, 60)
        frame = spec.preprocess["image"].from_image(seen)
        assert frame.dtype == np.uint8
        assert frame.shape == (1, 45, 60, 1 if camera == "L" else 3)
        away = np.abs(through(spec, {"image": frame}) - how.from_image(seen)) * np.reshape(std, (-1, 1, 1))
        assert away.max() <= 1.5 * STEP, (model, camera)
        assert away.mean() <= 0.5 * STEP, (model, camera)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_frame_of_the_models_size_is_the_same_to_the_bit_of_a_float(layout: Any, dtype: Any) -> None:
    how = ImagePreprocess(height=24, width=40, color="BGR", layout=layout, dtype=dtype, mean=(0.5,), std=(0.25,))
    spec = with_preprocess(spec_of(how), height=24, width=40)
    frame = spec.preprocess["image"].from_image(picture(24, 40))
    got, want = through(spec, {"image": frame}), how.from_image(picture(24, 40))
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, atol=2e-3 if dtype == "float16" else 1e-6)


def test_samples_and_metrics_of_the_recipe_go_the_way_back() -> None:
    how = ImagePreprocess(height=16, width=16, mean=(0.5,), std=(0.5,))
    rows = np.concatenate([how.from_image(picture(16, 16).rotate(90 * i)) for i in range(3)])

    def evaluate(run: Callable[[Feed], Tensors], n: int) -> dict[str, float]:
        return {"away": float(np.abs(run({"image": rows[:n]})["y"] - rows[:n]).max())}

    plain = spec_of(how, samples=lambda n, seed: {"image": rows[:n]}, evaluate=evaluate)
    same = with_preprocess(plain, height=16, width=16)
    frames = same.sample(2, seed=0)["image"]
    np.testing.assert_array_equal(frames[0], np.asarray(picture(16, 16)))
    assert same.measure(lambda feed: {"y": through(same, feed)}, 3)["away"] < 1e-6
    larger = with_preprocess(plain, height=64, width=64)
    assert larger.sample(2, seed=0)["image"].shape == (2, 64, 64, 3)
    assert larger.measure(lambda feed: {"y": through(larger, feed)}, 3)["away"] < 0.5


def test_a_package_takes_frames_and_says_so(tmp_path: Path) -> None:
    plain = spec_from_recipe(RECIPE)
    framed = export(RECIPE, output=tmp_path / "framed.edge", declared=Declared(frame=Frame(48, 64, "RGB")))
    assert [str(s) for s in framed.manifest.input_specs] == ["image: uint8[batch, 48, 64, 3]"]
    accuracy = framed.reference.accuracy
    assert accuracy is not None
    assert accuracy.metrics["top1"] > 0.98, "measured on frames made of the recipe's held-out images"
    digit = Image.fromarray(np.uint8(255 * (framed.samples().inputs["image"][0, ..., 0] > 90)))
    digit.convert("RGB").save(tmp_path / "digit.png")
    file = tmp_path / "digit.png"
    given = tensors_from_file(file, framed.manifest.input_specs, framed.manifest.preprocess)
    with OrtSession(framed.model_file(framed.reference), variant="fp32") as session:
        got = session.run(given)["logits"]
    want = TorchRunner(plain.build(), plain.inputs, model="plain", outputs=plain.outputs).run(
        tensors_from_file(file, plain.inputs, plain.preprocess)
    )["logits"]
    np.testing.assert_allclose(got, want, atol=0.05)


def test_what_the_graph_cannot_do_is_refused() -> None:
    how = ImagePreprocess(height=8, width=8)
    with pytest.raises(RecipeError, match="declares no inputs as images"):
        with_preprocess(spec_of(how, preprocess={}), height=8, width=8)
    for wrong, says in (({"interpolation": "bicubic"}, "bicubic"), ({"dtype": "uint8"}, "uint8 pixels already")):
        with pytest.raises(RecipeError, match=says):
            with_preprocess(spec_of(ImagePreprocess(height=8, width=8, **wrong)), height=8, width=8)
    with pytest.raises(RecipeError, match=r"gives \(3, 8, 8\) and it takes \(3, 9, 9\)"):
        with_preprocess(spec_of(how, inputs=(TensorSpec("image", "float32", ("batch", 3, 9, 9)),)), height=8, width=8)
    with pytest.raises(RecipeError, match="no pixels"):
        with_preprocess(spec_of(how), height=0, width=8)


def test_frames_need_a_module(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="needs a recipe that builds"):
        export(file, output=tmp_path / "x.edge", declared=Declared(frame=Frame(8, 8)))
    spec = with_preprocess(spec_of(ImagePreprocess(height=8, width=8), build=lambda: file), height=8, width=8)
    with pytest.raises(RecipeError, match=r"built from net\.onnx"):
        spec.build()


def test_frames_on_the_command_line() -> None:
    assert parse_frame("480x640") == Frame(480, 640)
    assert parse_frame("1080x1920:BGR") == Frame(1080, 1920, "BGR")
    for wrong in ("480", "0x640", "480x640:rgb", "480x640:NV12", "x"):
        with pytest.raises(UsageError, match="is not usable; expected a frame's height and width"):
            parse_frame(wrong)
