"""Pictures and recordings as requests: the package says how they become tensors, the answer is in labels."""

from __future__ import annotations

import io
import itertools
import wave
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import InputError
from edgekit.inference import scores
from edgekit.preprocess import ImagePreprocess
from edgekit.serve.messages import InferRequest, InferResponse, RequestError
from edgekit.serve.model import Model
from edgekit.tensors import Array, Tensors

if TYPE_CHECKING:
    from edgekit.serve.app import App
    from edgekit.serve.worker import Post

MAX_PIXELS = 50_000_000
MAX_SECONDS = 600.0
RATES_HZ = (4_000, 384_000)
"""A header of a few bytes may promise a picture or a recording that fills the memory; beyond these it is refused."""

_numbers = itertools.count(1)


def rows_of(model: Model, content_type: bytes, body: bytes) -> Tensors:
    """What the file in `body` gives `model`: its input with one or more rows.

    Raises:
        InputError: the file cannot be read, or promises too much.
        RequestError: the package declares no preprocessing of this kind (415).
    """
    kind = content_type.strip().lower().decode("latin-1")
    if len(model.preprocess) != 1:
        raise RequestError(
            415,
            f"Model '{model.name}' takes tensors only: its package declares preprocessing for "
            f"{len(model.preprocess) or 'no'} inputs, and a {kind} body needs it for one.",
        )
    ((name, how),) = model.preprocess.items()
    image = isinstance(how, ImagePreprocess)
    if kind.startswith("image/") != image:
        wanted = "a picture (image/jpeg, image/png)" if image else "a recording (audio/wav)"
        raise RequestError(415, f"Model '{model.name}' takes {wanted}; got {kind}.")
    (_check_picture if image else _check_recording)(body)
    return {name: how.from_bytes(body, name="body")}


def _check_picture(body: bytes) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(body)) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("The body is not a picture that can be decoded. Send a PNG or JPEG file.") from error
    if width * height > MAX_PIXELS:
        raise InputError(f"The picture has {width}x{height} pixels; at most {MAX_PIXELS} are decoded. Shrink it first.")


def _check_recording(body: bytes) -> None:
    try:
        with wave.open(io.BytesIO(body)) as file:
            rate, frames = file.getframerate(), file.getnframes()
    except (wave.Error, EOFError, ValueError) as error:
        raise InputError("The body is not a PCM WAV file. Convert it to 16-bit WAV first.") from error
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise InputError(f"The recording has {rate} samples a second; expected {RATES_HZ[0]} to {RATES_HZ[1]}.")
    if frames / rate > MAX_SECONDS:
        raise InputError(f"The recording is {frames / rate:.0f} s long; at most {MAX_SECONDS:.0f} s are taken at once.")


class MediaRun:
    """One file through a model: all its rows in one request where rows are free of each other, else one by one.

    `answer` is called once, with the outputs of all rows or an error.
    """

    def __init__(
        self, app: App, model: Model, feed: Tensors, answer: Callable[[Tensors | Exception], None], post: Post
    ) -> None:
        self._app, self._model, self._answer, self._post = app, model, answer, post
        ((self._name, self._rows),) = feed.items()
        self._next = 0
        self._parts: list[Tensors] = []
        self._sequence = f"file-{next(_numbers)}"

    def start(self, started_ns: int) -> None:
        """Begin; `started_ns` is when the request arrived."""
        self._started_ns = started_ns
        spec = self._model.input_specs[self._name]
        if len(self._rows) == 1 or (spec.batched and not self._model.states):
            self._ask(self._rows, {})
        else:
            self._step()

    def _step(self) -> None:
        first, last = self._next == 0, self._next == len(self._rows) - 1
        parameters: dict[str, Any] = {}
        if self._model.states:
            parameters = {"sequence_id": self._sequence, "sequence_start": first, "sequence_end": last}
        self._ask(self._rows[self._next : self._next + 1], parameters)

    def _ask(self, rows: Array, parameters: dict[str, Any]) -> None:
        if self._model.states and not parameters:
            parameters = {"sequence_id": self._sequence, "sequence_start": True, "sequence_end": True}
        self._next += len(rows)
        request = InferRequest({self._name: rows}, parameters=parameters)
        self._app.infer(self._model, request, self._arrived, self._post, self._started_ns)

    def _arrived(self, result: InferResponse | Exception) -> None:
        if isinstance(result, Exception):
            self._answer(result)
            return
        self._parts.append({out.name: out.value for out in result.outputs})
        if self._next < len(self._rows):
            # through the loop, so that other requests get their turn between two rows
            self._post(self._step)
            return
        self._answer(_joined(self._parts))


def _joined(parts: list[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return {
        name: np.concatenate([p[name] for p in parts]) if parts[0][name].ndim else np.stack([p[name] for p in parts])
        for name in parts[0]
    }


def document_of(model: Model, outputs: Tensors, *, top: int) -> dict[str, Any]:
    """The answer in JSON: the best `top` classes of each row for a classifier, else the values of every output."""
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    first = next(iter(outputs.values()))
    if model.task == "classification" and first.ndim > 1:
        ranked = partial(scores, outputs, model.labels, top=top)
        rows = [
            [{"label": s.label, "probability": round(s.probability, 6)} for s in ranked(row=i)]
            for i in range(len(first))
        ]
        return {**head, "rows": rows}
    from edgekit.serve.wire import json_from_array

    return {
        **head,
        "outputs": [
            {
                "name": name,
                "datatype": model.datatypes[name],
                "shape": value.shape,
                "data": json_from_array(name, model.datatypes[name], value),
            }
            for name, value in outputs.items()
        ],
    }
