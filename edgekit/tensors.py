"""Tensors by name, type and shape: the words that every layer shares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekit.errors import InputError, ModelError

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = dict[str, Array]
Feed: TypeAlias = Mapping[str, Array]
Dim: TypeAlias = "int | str"

UNNAMED_DIMS = ("", "?", "-1", "None", "none")
"""What exporters write where they mean a dimension without a name: two of them need not be equal."""


@dataclass(frozen=True, slots=True)
class DType:
    """One element type under its names in numpy, ONNX and the Open Inference Protocol."""

    name: str
    oip: str
    onnx: int
    itemsize: int


_DTYPES = (
    DType("bool", "BOOL", 9, 1),
    DType("uint8", "UINT8", 2, 1),
    DType("uint16", "UINT16", 4, 2),
    DType("uint32", "UINT32", 12, 4),
    DType("uint64", "UINT64", 13, 8),
    DType("int8", "INT8", 3, 1),
    DType("int16", "INT16", 5, 2),
    DType("int32", "INT32", 6, 4),
    DType("int64", "INT64", 7, 8),
    DType("float16", "FP16", 10, 2),
    DType("bfloat16", "BF16", 16, 2),
    DType("float32", "FP32", 1, 4),
    DType("float64", "FP64", 11, 8),
    DType("string", "BYTES", 8, 0),
)
_BY_NAME = {d.name: d for d in _DTYPES}
_BY_OIP = {d.oip: d for d in _DTYPES}
_BY_ONNX = {d.onnx: d for d in _DTYPES}


def dtype_of(name: str) -> DType:
    """The type called `name` ("float32"). Raises ModelError for a type that edgekit does not carry."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(_BY_NAME)
        raise ModelError(f"Type '{name}' is not supported; expected one of {known}.") from None


def dtype_from_oip(name: str) -> DType:
    """The type that the Open Inference Protocol calls `name` ("FP32"). Raises InputError if unknown."""
    try:
        return _BY_OIP[name]
    except KeyError:
        known = ", ".join(_BY_OIP)
        raise InputError(f"Datatype '{name}' is not known; expected one of {known}.") from None


def dtype_from_onnx(elem_type: int, *, tensor: str) -> DType:
    """The type of an ONNX `TensorProto.DataType` number. Raises ModelError, naming `tensor`, if unsupported."""
    try:
        return _BY_ONNX[elem_type]
    except KeyError:
        raise ModelError(
            f"Tensor '{tensor}' has ONNX element type {elem_type}, which edgekit does not carry. "
            "Cast it to a float, integer, bool or string type in the model."
        ) from None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that holds `name`; bfloat16 travels as its raw 16 bits, strings as objects."""
    if name == "bfloat16":
        return np.dtype(np.uint16)
    if name == "string":
        return np.dtype(object)
    return np.dtype(dtype_of(name).name)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, type and shape.

    A dimension is a positive integer or a name ("batch"); equal names are equal sizes. The first dimension
    is the batch when it is a name.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ModelError(f"A tensor's name must be a non-empty string, got {self.name!r}.")
        dtype_of(self.dtype)
        object.__setattr__(self, "shape", tuple(self.shape))
        for dim in self.shape:
            bad = isinstance(dim, bool) or not isinstance(dim, (int, str)) or dim == ""
            if bad or (isinstance(dim, int) and dim < 0):
                raise ModelError(f"Tensor '{self.name}' has dimension {dim!r}; expected a size or a name.")

    @property
    def batched(self) -> bool:
        """Whether the first dimension is free, so that several samples go in one call."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    def concrete(self, **sizes: int) -> tuple[int, ...]:
        """The shape with named dimensions replaced from `sizes`; names not given become 1."""
        return tuple(d if isinstance(d, int) else sizes.get(d, 1) for d in self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def shape_text(shape: Sequence[Dim]) -> str:
    """A shape as users read it: (batch,3,224,224)."""
    return "(" + ",".join(map(str, shape)) + ")"


def check_feed(feed: Feed, specs: Sequence[TensorSpec]) -> Tensors:
    """The arrays of `feed` in the order of `specs`, contiguous, with type and shape checked.

    float32 for a float16 input is rounded: a package's samples fit its variants with half-precision inputs too.

    Raises:
        InputError: an input is missing, unknown, of another type, or does not fit its shape.
    """
    known = {s.name for s in specs}
    for name in feed:
        if name not in known:
            raise InputError(f"Input '{name}' is not an input of this model; it has {', '.join(sorted(known))}.")
    out: Tensors = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feed:
            raise InputError(f"Input '{spec.name}' is missing; expected {spec}.")
        value = np.asarray(feed[spec.name])
        wanted = numpy_dtype(spec.dtype)
        if spec.dtype == "float16" and value.dtype == np.float32:
            with np.errstate(over="ignore"):
                value = value.astype(np.float16)
        if value.dtype != wanted and not (spec.dtype == "string" and value.dtype.kind in "OSU"):
            raise InputError(
                f"Input '{spec.name}': got {value.dtype}, this model accepts {spec.dtype}. Convert it first."
            )
        fits = value.ndim == len(spec.shape)
        for got, dim in zip(value.shape, spec.shape):
            if isinstance(dim, int):
                fits = fits and got == dim
            elif sizes.setdefault(dim, (got, spec.name))[0] != got:
                size, other = sizes[dim]
                raise InputError(
                    f"Input '{spec.name}': dimension '{dim}' is {got} but '{other}' has {size}; they must be equal."
                )
        if not fits:
            raise InputError(
                f"Input '{spec.name}': got {shape_text(value.shape)}, this model accepts "
                f"{shape_text(spec.shape)}. Resize or reshape it first."
            )
        # not np.ascontiguousarray, which makes a scalar a vector
        out[spec.name] = value if value.flags.c_contiguous else value.copy(order="C")
    return out


class FeedChecker:
    """`check_feed` for one model, with a memory of the types and shapes that fitted: a steady caller's always do."""

    MEMORY = 256

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        self._fitted: set[tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]] = set()

    def __call__(self, feed: Feed) -> Tensors:
        """The arrays of `feed`, contiguous, with type and shape checked. Raises InputError as `check_feed` does."""
        signature = []
        for name, value in feed.items():
            if type(value) is not np.ndarray or not value.flags.c_contiguous:
                return check_feed(feed, self._specs)
            signature.append((name, value.dtype, value.shape))
        key = tuple(signature)
        if key in self._fitted:
            return dict(feed)
        checked = check_feed(feed, self._specs)
        if all(checked[name] is value for name, value in feed.items()):  # nothing had to be converted
            if len(self._fitted) >= self.MEMORY:
                self._fitted.clear()
            self._fitted.add(key)
        return checked


def with_defaults(feed: Feed, defaults: Feed, inputs: Sequence[TensorSpec]) -> Tensors:
    """`feed` with `defaults` for the inputs that it lacks, each repeated to the sizes that the given tensors have.

    A default that cannot be is taken as it is: the check of the feed says what is wrong with it.
    """
    out: Tensors = dict(feed)
    missing = [s for s in inputs if s.name in defaults and s.name not in feed]
    if missing:
        given = [(s.shape, np.shape(feed[s.name])) for s in inputs if s.name in feed]
        sizes = {dim: n for dims, shape in given for dim, n in zip(dims, shape) if isinstance(dim, str)}
        for spec in missing:
            value = out[spec.name] = np.asarray(defaults[spec.name])
            wanted = spec.concrete(**sizes)
            if value.shape != wanted:
                with contextlib.suppress(ValueError):
                    out[spec.name] = np.array(np.broadcast_to(value, wanted))
    return out


def batch_axis(spec: TensorSpec, specs: Sequence[TensorSpec]) -> int | None:
    """The axis of `spec` along which samples are stacked, or None when it is shared by all samples.

    With a free batch (the first dimension of the first input is a name) it is where that name stands, which need not
    be in front: a recurrent state is often (layers, batch, hidden). Without one, samples are blocks along axis 0.
    """
    first = specs[0]
    if first.batched:
        if first.shape[0] in spec.shape:
            return spec.shape.index(first.shape[0])
        return 0 if spec.batched else None  # an output whose batch the exporter gave another name
    return 0 if spec.shape else None


def sample_count(arrays: Feed, specs: Sequence[TensorSpec]) -> int:
    """How many samples `arrays` hold: rows of a free batch, or blocks of the fixed first dimension."""
    first = specs[0]
    axis = batch_axis(first, specs)
    if axis is None:
        return 1
    size = int(arrays[first.name].shape[axis])
    block = first.shape[axis]
    return size if isinstance(block, str) else size // max(1, block)


def take_samples(
    arrays: Feed, specs: Sequence[TensorSpec], start: int, stop: int, like: Sequence[TensorSpec]
) -> Tensors:
    """Samples `start` to `stop` of `arrays`; `specs` describe them, `like` are the model's inputs.

    With a fixed batch only one sample fits a call: `stop` is `start + 1`.
    """
    out: Tensors = {}
    for spec in specs:
        if spec.name not in arrays:
            continue
        axis = batch_axis(spec, like)
        if axis is None:
            out[spec.name] = arrays[spec.name]
            continue
        dim = spec.shape[axis]
        block = dim if isinstance(dim, int) else 1
        index = [slice(None)] * axis + [slice(start * block, stop * block)]
        out[spec.name] = arrays[spec.name][tuple(index)]
    return out


def batches(arrays: Feed, inputs: Sequence[TensorSpec], size: int) -> Iterator[Tensors]:
    """Feeds of up to `size` samples each (of one, when the model's batch is fixed), in order."""
    count = sample_count(arrays, inputs)
    step = size if inputs[0].batched else 1
    for start in range(0, count, step):
        yield take_samples(arrays, inputs, start, min(count, start + step), inputs)


def join(parts: Sequence[Tensors], outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec]) -> Tensors:
    """Outputs of several batches as one: the inverse of `batches`."""
    joined: Tensors = {}
    for spec in outputs:
        axis = batch_axis(spec, inputs)
        arrays = [p[spec.name] for p in parts]
        joined[spec.name] = arrays[0] if axis is None else np.concatenate(arrays, axis=axis)
    return joined


def run_in_batches(
    run: Callable[[Feed], Tensors],
    arrays: Feed,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    size: int = 32,
) -> Tensors:
    """All samples of `arrays` through `run`, up to `size` a call, joined again."""
    return join([run(feed) for feed in batches(arrays, inputs, size)], outputs, inputs)
