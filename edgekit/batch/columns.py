"""What a table of results holds: which columns, and how the outputs of one call become rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.errors import BackendError
from edgekit.inference import best_classes, label_of
from edgekit.package import Package
from edgekit.serve.wire import float32_from_bfloat16
from edgekit.tensors import Array, Tensors, TensorSpec, batch_axis

OWN = ("path", "row", "error")


@dataclass(frozen=True)
class Column:
    """One column of results: `dtype` as tensors name it, and the shape of one row's value; None is a free size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Rows of one call, or of files that failed: `values` by column, each array with one entry a row.

    `names` are the files' (as often as they have rows) and `index` the number of each row in its file.
    """

    names: Sequence[str]
    index: Sequence[int]
    values: dict[str, Array] = field(default_factory=dict)
    error: str = ""

    @property
    def nbytes(self) -> int:
        """About how much memory they hold."""
        return sum(v.nbytes for v in self.values.values()) + 100 * len(self.names)


@dataclass(frozen=True)
class _Tensor:
    """An output as a column; `axis` is where its rows lie, None where each call gives one value for all its rows."""

    column: Column
    source: str
    axis: int | None
    bfloat16: bool


class Layout:
    """The columns that a package's results have.

    A classifier gives the `top` best labels with their scores, and its tensors only if `tensors`; other models always
    give their tensors, without the batch. Types that tables lack are widened: float16 and bfloat16 to float32.
    """

    def __init__(self, package: Package, *, top: int, tensors: bool = False) -> None:
        manifest = package.manifest
        inputs = manifest.input_specs
        states = set(manifest.states.values())
        outputs = [s for s in manifest.output_specs if s.name not in states]
        self.labels = package.labels()
        self._free = inputs[0].batched
        block = inputs[0].shape[0] if inputs[0].shape else 1
        axes = {s.name: _row_axis(s, inputs) for s in outputs}
        if self._free and not manifest.states:
            axes = _confirmed(package, axes)
        whole = [name for name, axis in axes.items() if axis is None]
        self.alone = bool(self._free and whole)
        """Whether every sample is a call of its own, since an output cannot be told apart by rows."""
        self.rows_a_call = int(block) if isinstance(block, int) and not whole else 1
        """Rows that one call of a model with a fixed batch gives."""
        classes = outputs[0] if manifest.task == "classification" and outputs[0].name not in whole else None
        self._classes = "" if classes is None else classes.name
        self._top = 0 if classes is None else min(top, _class_count(classes, axes[classes.name]) or top)
        taken = {*OWN, *(f"{what}_{i + 1}" for i in range(self._top) for what in ("label", "score"))}
        kept = outputs if tensors or classes is None else []
        self._tensors = [_tensor(s, axes[s.name], taken) for s in kept]
        ranked = [
            Column(f"{what}_{i + 1}", kind)
            for i in range(self._top)
            for what, kind in (("label", "string"), ("score", "float64"))
        ]
        self.columns: tuple[Column, ...] = (*ranked, *(t.column for t in self._tensors))

    def values(self, outputs: Tensors, rows: int) -> dict[str, Array]:
        """The columns of one call that `rows` rows went into.

        Raises:
            BackendError: an output does not have the rows that went in.
        """
        out: dict[str, Array] = {}
        if self._classes:
            first = outputs[self._classes]
            if len(first) != rows:
                raise _wrong_rows(self._classes, len(first), rows)
            classes, scores = best_classes(first.reshape(rows, -1), self._top)
            for i in range(classes.shape[1]):
                out[f"label_{i + 1}"] = np.array([label_of(c, self.labels) for c in classes[:, i].tolist()], object)
                out[f"score_{i + 1}"] = scores[:, i]
        for tensor in self._tensors:
            value = outputs[tensor.source]
            if tensor.axis is None:
                value = np.broadcast_to(value[None], (rows, *value.shape))
            elif value.shape[tensor.axis] != rows:
                raise _wrong_rows(tensor.source, value.shape[tensor.axis], rows)
            else:
                value = np.moveaxis(value, tensor.axis, 0)
            if tensor.bfloat16:
                value = float32_from_bfloat16(value)
            wanted = tensor.column.dtype
            out[tensor.column.name] = value if wanted == "string" else value.astype(wanted, copy=False)
        return out


def _row_axis(spec: TensorSpec, inputs: Sequence[TensorSpec]) -> int | None:
    """The axis along which `spec` has one entry a row, by its declared shape; None if it has none."""
    first = inputs[0]
    if first.batched:
        return batch_axis(spec, inputs)
    return 0 if spec.shape and first.shape and spec.shape[0] == first.shape[0] else None


def _confirmed(package: Package, axes: dict[str, int | None]) -> dict[str, int | None]:
    """`axes` without those that the package's own samples contradict: an output of detections has rows of its own."""
    if package.manifest.samples is None:
        return axes
    samples = package.samples()
    out = dict(axes)
    for name, axis in axes.items():
        value = samples.outputs.get(name)
        if axis is not None and value is not None and value.ndim > axis and value.shape[axis] != samples.count:
            out[name] = None
    return out


def _class_count(spec: TensorSpec, axis: int | None) -> int | None:
    sizes = [d for i, d in enumerate(spec.shape) if i != axis]
    return int(np.prod([int(d) for d in sizes])) if all(isinstance(d, int) for d in sizes) else None


def _tensor(spec: TensorSpec, axis: int | None, taken: set[str]) -> _Tensor:
    shape = tuple(d if isinstance(d, int) else None for i, d in enumerate(spec.shape) if i != axis)
    dtype = "float32" if spec.dtype in ("float16", "bfloat16") else spec.dtype
    name = spec.name
    while name in taken or f"{name}_shape" in taken:
        name = f"output_{name}"
    taken |= {name, f"{name}_shape"}
    return _Tensor(Column(name, dtype, shape), spec.name, axis, spec.dtype == "bfloat16")


def _wrong_rows(name: str, got: int, rows: int) -> BackendError:
    return BackendError(f"Output '{name}' has {got} rows for {rows} that went in.")
