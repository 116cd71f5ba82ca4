"""What the command line says about a model, over what its recipe says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec

from edgekit.errors import UsageError
from edgekit.export.frames import Frame, with_preprocess
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec, check_name
from edgekit.tensors import TensorSpec, shape_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """Declarations that replace the recipe's; None leaves its word.

    `labels` is a text file of one class a line; `preprocess` a JSON file of input name -> preprocessing, as in a
    package's manifest. `frame` is the size and colour of a camera's frames, which the model then takes as they are: see
    `edgekit.export.frames`.
    """

    name: str | None = None
    task: str | None = None
    labels: Path | None = None
    preprocess: Path | None = None
    frame: Frame | None = None

    def over(self, spec: ModelSpec) -> ModelSpec:
        """`spec` with these declarations; labels without a task make it a classification.

        Raises:
            UsageError: a file cannot be read, or does not fit the model.
            RecipeError: preprocessing cannot go into the graph.
        """
        changes: dict[str, object] = {}
        if self.name is not None:
            changes["name"] = check_name(self.name)
        if self.labels is not None:
            changes["labels"] = read_labels(self.labels)
            changes["task"] = spec.task or "classification"
        if self.task is not None:
            changes["task"] = self.task
        if self.preprocess is not None:
            changes["preprocess"] = read_preprocess(self.preprocess)
        if changes:
            spec = dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
        return with_preprocess(spec, **self.frame._asdict()) if self.frame is not None else spec


def read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a text file. Raises UsageError if it cannot be read or is empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Labels '{path}' cannot be read as UTF-8 text; expected one class a line.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UsageError(f"Labels '{path}' are empty; expected one class a line.")
    return tuple(line.strip() for line in lines)


def read_preprocess(path: Path) -> dict[str, Preprocess]:
    """Preprocessing by input name from a JSON file. Raises UsageError if it is not that."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Preprocess])
    except OSError as error:
        raise UsageError(f"Preprocessing '{path}' cannot be read ({error.strerror}). Check the path.") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"Preprocessing '{path.name}' is not usable: {error}. Expected, for example, "
            '{"image": {"kind": "image", "height": 224, "width": 224}}.'
        ) from error


def check_labels(spec: ModelSpec, output: TensorSpec) -> None:
    """Raise UsageError if a classification has other than one label a class of its first output."""
    sizes = [d for d in output.shape[1:] if isinstance(d, int)]
    if spec.task != "classification" or len(sizes) != len(output.shape) - 1 or not sizes:
        return
    if len(spec.labels) not in (sizes[-1], math.prod(sizes)):
        raise UsageError(
            f"'{spec.name}' has {len(spec.labels)} labels, its output '{output.name}' is "
            f"{shape_text(output.shape)}. Give one label a class, in the order of the output."
        )
