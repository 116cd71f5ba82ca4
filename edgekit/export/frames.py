"""Preprocessing as the first part of the graph: a camera's frame goes in as it is, uint8, rows of pixels.

`with_preprocess` makes such a model of a recipe. What its recipe declares for files (`preprocess`) becomes
`plugins_trt.torch.letterbox_normalize`: a CUDA kernel or, where there is none, a function of standard operators.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from edgekit._lazy import require
from edgekit.errors import RecipeError
from edgekit.export.source import built
from edgekit.export.torch_runner import TorchRunner
from edgekit.preprocess import ImagePreprocess
from edgekit.recipe import ModelSpec, Runner
from edgekit.tensors import Array, Feed, Tensors, TensorSpec

Color = Literal["RGB", "BGR", "L"]


class Frame(NamedTuple):
    """Frames of a camera: pixels, and the order of their channels (None: the model's)."""

    height: int
    width: int
    color: Color | None = None


GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Red, green and blue in grey, as Pillow converts (ITU-R BT.601)."""


def with_preprocess(spec: ModelSpec, *, height: int, width: int, color: Color | None = None) -> ModelSpec:
    """`spec` whose image input takes frames of `height` x `width` pixels: uint8 [batch, height, width, channels].

    Resizing (to fit with a border, to fill, or to stretch), colour conversion and normalisation are those that the
    recipe declares for files, and done in the graph. Pillow rounds to whole pixels between them and the graph does not:
    values differ by up to one step of 255, or one and a half where colours become grey.

    Samples and evaluate stay those of the recipe. Their inputs are made into frames by going the way back: exact where
    a frame has the size of the model's input, else resized, and without what lies outside the frame's own picture.
    What the model gives in pixels stays in those of its own input, not of the frame.

    Args:
        spec: a recipe whose `build` gives a `torch.nn.Module`.
        height, width: of a frame, pixels.
        color: order of a frame's channels; None takes that of the model.

    Raises:
        RecipeError: no input is declared as an image, or it is declared in a way that the graph cannot do.
    """
    name, how = _image(spec)
    if height < 1 or width < 1:
        raise RecipeError(f"A frame of {height}x{width} has no pixels; give its height and width.")
    frame = ImagePreprocess(
        height=height, width=width, color=color or how.color, resize=how.resize, pad=how.pad,
        layout="NHWC", dtype="uint8",
    )  # fmt: skip
    batch = next(s for s in spec.inputs if s.name == name).shape[0]
    channels = 1 if frame.color == "L" else 3
    taken = TensorSpec(name, "uint8", (batch, height, width, channels))
    samples, evaluate = spec.samples, spec.evaluate

    def framed(feed: Feed) -> Tensors:
        rows = [_frame_from_input(row, how, frame) for row in np.asarray(feed[name])]
        return {**feed, name: np.stack(rows) if rows else np.empty((0, height, width, channels), np.uint8)}

    return dataclasses.replace(
        spec,
        build=lambda: _module(spec, name, how, frame),
        inputs=tuple(taken if s.name == name else s for s in spec.inputs),
        preprocess={**spec.preprocess, name: frame},
        samples=None if samples is None else lambda n, seed: framed(dict(samples(n, seed))),
        evaluate=None if evaluate is None else lambda run, n: evaluate(_through(run, framed), n),
    )


def _through(run: Runner, framed: Callable[[Feed], Tensors]) -> Runner:
    return lambda feed: run(framed(feed))


def _image(spec: ModelSpec) -> tuple[str, ImagePreprocess]:
    """The input that images feed, and how. Raises RecipeError if the graph cannot do it."""
    images = {k: v for k, v in spec.preprocess.items() if isinstance(v, ImagePreprocess)}
    if len(images) != 1:
        raise RecipeError(
            f"'{spec.name}' declares {len(images) or 'no'} inputs as images; preprocessing in the graph needs one. "
            "Declare it in SPEC.preprocess."
        )
    ((name, how),) = images.items()
    channels = 1 if how.color == "L" else 3
    size = (how.height, how.width)
    expected = (channels, *size) if how.layout == "NCHW" else (*size, channels)
    tensor = next(s for s in spec.inputs if s.name == name)
    wrong = ""
    if how.dtype == "uint8":
        wrong = "it takes uint8 pixels already"
    elif how.interpolation != "bilinear":
        wrong = f'its interpolation is "{how.interpolation}", and the graph resizes bilinearly'
    elif len(tensor.shape) != 4 or any(isinstance(d, int) and d != e for d, e in zip(tensor.shape[1:], expected)):
        wrong = f"its preprocessing gives {expected} and it takes {tensor.shape[1:]}"
    if wrong:
        raise RecipeError(f"Preprocessing of '{name}' of '{spec.name}' cannot go into the graph: {wrong}.")
    return name, how


def content_box(how: ImagePreprocess, height: int, width: int) -> tuple[int, int, int, int]:
    """Where a frame of `height` x `width` lies in the model's input: left, top, width, height (partly outside it where
    it is cropped)."""
    wide, high = how.content_size(width, height)
    return (how.width - wide) // 2, (how.height - high) // 2, wide, high


def _frame_from_input(row: Array, how: ImagePreprocess, frame: ImagePreprocess) -> Array:
    """The way back: a preprocessed input as a frame (height, width, channels) that gives it."""
    from PIL import Image

    planes = np.asarray(row, np.float32)
    pixels = planes.transpose(1, 2, 0) if how.layout == "NCHW" else planes
    plain = (pixels * np.asarray(how.std, np.float32) + np.asarray(how.mean, np.float32)) / np.float32(how.scale)
    whole = np.clip(np.rint(plain), 0, 255).astype(np.uint8)
    if how.color == "BGR":
        whole = whole[:, :, ::-1]
    picture = Image.fromarray(whole[:, :, 0] if how.color == "L" else np.ascontiguousarray(whole))
    left, top, wide, high = content_box(how, frame.height, frame.width)
    picture = picture.crop((left, top, left + wide, top + high))
    picture = picture.resize((frame.width, frame.height), Image.Resampling.BILINEAR)
    picture = picture.convert("L" if frame.color == "L" else "RGB")
    out = np.asarray(picture, np.uint8).reshape(frame.height, frame.width, -1)
    return out[:, :, ::-1] if frame.color == "BGR" else out


def _module(spec: ModelSpec, name: str, how: ImagePreprocess, frame: ImagePreprocess) -> Any:
    """The recipe's module behind the preprocessing. Raises RecipeError if it builds something else."""
    torch = require("torch", why="put preprocessing in front of a model")
    ops = require("plugins_trt.torch", why="put preprocessing in front of a model")
    inner = built(spec)
    if isinstance(inner, Path):
        raise RecipeError(
            f"'{spec.name}' is built from {inner.name}; preprocessing goes into the graph of a torch.nn.Module only."
        )
    keywords = TorchRunner(inner, spec.inputs, model=spec.name).keywords
    names = [s.name for s in spec.inputs]
    left, top, wide, high = content_box(how, frame.height, frame.width)
    crop = how.resize == "crop"
    sizes = {"height": high, "width": wide} if crop else {"height": how.height, "width": how.width}
    sizes["keep_aspect"] = int(how.resize == "letterbox")
    mixed = (frame.color == "L") != (how.color == "L")
    swap = int(not mixed and frame.color != how.color)

    class Framed(torch.nn.Module):  # type: ignore[misc,name-defined]
        """Frames to the model's input, and through the model."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            order = GREY if frame.color == "RGB" else GREY[::-1]
            self.register_buffer("grey", torch.tensor(order).reshape(1, 3, 1, 1), persistent=False)
            for key in ("mean", "std"):
                values = torch.tensor(getattr(how, key), dtype=torch.float32)
                self.register_buffer(key, values.reshape(1, -1, 1, 1), persistent=False)

        def pixels(self, frames: Any) -> Any:
            """uint8 [N, height, width, channels] as the model takes it."""
            normal = {} if mixed else {"mean": list(how.mean), "std": list(how.std)}
            x = ops.letterbox_normalize(frames, scale=how.scale, pad=float(int(how.pad)), swap=swap, **sizes, **normal)
            if crop:
                x = x[:, :, -top : -top + how.height, -left : -left + how.width]
            if mixed:
                x = (x * self.grey).sum(dim=1, keepdim=True) if how.color == "L" else x.expand(-1, 3, -1, -1)
                x = (x - self.mean) / self.std
            if how.layout == "NHWC":
                x = x.permute(0, 2, 3, 1)
            return x.to(getattr(torch, how.dtype))

        def forward(self, *inputs: Any) -> Any:
            given = dict(zip(names, inputs))
            given[name] = self.pixels(given[name])
            return self.inner(**given) if keywords else self.inner(*given.values())

    return Framed().eval()
