"""What an operator is: its ports and attributes, its mathematics in numpy and in ONNX, and how its kernel is launched.

An operator of this package is one file that subclasses `Operator` and one CUDA source in `kernels/`. Everything else
(the TensorRT plugin, the ONNX function, the PyTorch operator, the report, the tests' harness) is derived from here.

The kernel's arguments are, in this order: a pointer for each input, the 32-bit integers of `KernelPlan.scalars`, a
pointer for each output. Whatever the plan can know before the engine runs goes into `KernelPlan.constants` instead,
which are macros of the source.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from plugins_trt import DOMAIN
from plugins_trt.dims import Dim, Size, evaluate
from plugins_trt.errors import UnsupportedCallError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins_trt.body import Body
    from plugins_trt.fuse import Graph

Scalar: TypeAlias = int | float | str
AttributeValue: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...]
Kind: TypeAlias = Literal["int", "float", "str", "ints", "floats"]

FLOATS = ("float32", "float16", "bfloat16")
ITEM_BYTES: Mapping[str, int] = {
    "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip
C_TYPES: Mapping[str, str] = {
    "float32": "float", "float16": "f16", "bfloat16": "bf16", "int8": "i8", "uint8": "u8", "int32": "i32",
    "int64": "i64", "bool": "bool",
}  # fmt: skip
"""The names of the types in `kernels/device.cuh`."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype called `name`, bfloat16 included."""
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


@dataclass(frozen=True)
class TensorType:
    """A tensor without its values. `dtype` is numpy's name, or "bfloat16"."""

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, when all of it is known; TypeError if it is not."""
        if any(isinstance(size, Size) for size in self.shape):
            raise TypeError(f"the shape {self} is known only at run time")
        return tuple(int(size) for size in self.shape)  # type: ignore[arg-type]

    @property
    def elements(self) -> int:
        """Number of elements; the shape must be known."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Bytes of all elements; the shape must be known."""
        return self.elements * self.item_bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Port:
    """An input: the dtypes that it takes, or the earlier input whose dtype it shares; the ranks that it takes."""

    name: str
    dtypes: tuple[str, ...] = FLOATS
    like: str = ""
    ranks: tuple[int, ...] = ()
    doc: str = ""


@dataclass(frozen=True)
class Attribute:
    """An attribute of the ONNX node, baked into the kernel when the engine is built."""

    name: str
    kind: Kind
    default: AttributeValue | None = None
    doc: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Scalar, ...] = ()

    def checked(self, value: Any, operator: str) -> AttributeValue:
        """`value` as this attribute's kind. Raises UnsupportedCallError where it cannot be."""
        if value is None:
            raise UnsupportedCallError(f"{operator}: attribute '{self.name}' is missing, and has no default.")
        try:
            fine = _converted(self.kind, value)
        except (TypeError, ValueError):
            message = f"{operator}: attribute '{self.name}' is {value!r}, not {_KIND_NAMES[self.kind]}."
            raise UnsupportedCallError(message) from None
        if self.choices and fine not in self.choices:
            options = ", ".join(map(repr, self.choices))
            raise UnsupportedCallError(f"{operator}: attribute '{self.name}' is {fine!r}; it can be {options}.")
        for item in fine if isinstance(fine, tuple) else (fine,):
            if isinstance(item, str):
                continue
            low = self.minimum is not None and not item >= self.minimum
            high = self.maximum is not None and not item <= self.maximum
            if low or high:
                bounds = (("at least", self.minimum), ("at most", self.maximum))
                wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
                raise UnsupportedCallError(f"{operator}: attribute '{self.name}' is {fine!r}; it must be {wanted}.")
        return fine


_KIND_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "ints": "a list of integers",
    "floats": "a list of numbers",
}


def _converted(kind: Kind, value: Any) -> AttributeValue:
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError
        return value
    if kind == "float":
        return float(value)
    if kind == "floats":
        return tuple(float(item) for item in value)
    if kind == "ints":
        return tuple(_integer(item) for item in value)
    return _integer(value)


def _integer(value: Any) -> int:
    if int(value) != value:
        raise ValueError
    return int(value)


@dataclass(frozen=True)
class Call:
    """One checked use of an operator: what it is given. Made by `Operator.call`."""

    operator: str
    inputs: tuple[TensorType, ...]
    attributes: Mapping[str, AttributeValue]

    def number(self, name: str) -> float:
        """The value of a float attribute."""
        return float(self.attributes[name])  # type: ignore[arg-type]

    def integer(self, name: str) -> int:
        """The value of an int attribute."""
        return int(self.attributes[name])  # type: ignore[arg-type]

    def text(self, name: str) -> str:
        """The value of a str attribute."""
        return str(self.attributes[name])

    def known(self, size: Dim, what: str) -> int:
        """`size` as a number. Raises UnsupportedCallError, naming `what`, if it is free until run time."""
        if isinstance(size, Size):
            raise UnsupportedCallError(
                f"{self.operator}: {what} must be known when the engine is built, and is free here. "
                "Export with that dimension fixed; until then the node runs through its function body."
            )
        return int(size)

    def refuse(self, why: str) -> UnsupportedCallError:
        """The error to raise for a call that the kernel cannot do."""
        return UnsupportedCallError(f"{self.operator}: {why}")


@dataclass(frozen=True)
class KernelPlan:
    """How the kernel is compiled and launched for one call.

    `constants` become macros (a str goes in as it is: a type of `device.cuh`). `grid` and `scalars` may depend on free
    dimensions. `shared_bytes` is dynamic shared memory; it and static shared memory together may not pass 48 KiB, since
    nothing says that TensorRT raises the limit of a kernel that it launches.
    """

    entry: str
    constants: Mapping[str, Scalar]
    grid: tuple[Dim, Dim, Dim]
    block: tuple[int, int, int]
    scalars: tuple[Dim, ...] = ()
    shared_bytes: int = 0

    @property
    def threads(self) -> int:
        """Threads of one block."""
        return self.block[0] * self.block[1] * self.block[2]

    def grid_for(self, shapes: Sequence[Sequence[int]]) -> tuple[int, int, int]:
        """The grid for inputs of `shapes`."""
        x, y, z = (evaluate(size, shapes) for size in self.grid)
        return x, y, z

    def scalars_for(self, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The scalar arguments for inputs of `shapes`."""
        return tuple(evaluate(size, shapes) for size in self.scalars)


@dataclass(frozen=True)
class Cost:
    """What a call must move and compute at the least: bytes from and to memory, floating-point operations (a
    multiply-add is two)."""

    bytes_read: int
    bytes_written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes moved, both ways."""
        return self.bytes_read + self.bytes_written

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.flops / self.bytes if self.bytes else 0.0


class Operator(ABC):
    """An operator of the domain `edgekit`. See the module's text; `docs/plugins.md` walks through writing one."""

    name: str
    """The ONNX op_type, and the plugin's name."""
    summary: str
    """One line on what it does."""
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    kernel_file: ClassVar[str]
    """The CUDA source, in the folder `kernels` beside the operator's own file."""

    def call(self, *inputs: TensorType, **attributes: Any) -> Call:
        """A use of this operator, checked.

        Raises:
            UnsupportedCallError: number, dtype or rank of the inputs, an attribute, or what `check` refuses.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(port.name for port in self.inputs)
            raise UnsupportedCallError(f"{self.name}: got {len(inputs)} inputs, it takes {len(self.inputs)}: {names}.")
        by_name: dict[str, TensorType] = {}
        for port, given in zip(self.inputs, inputs):
            dtypes = (by_name[port.like].dtype,) if port.like else port.dtypes
            if given.dtype not in dtypes:
                wanted = " or ".join(dtypes) + (f", as '{port.like}'" if port.like else "")
                raise UnsupportedCallError(f"{self.name}: input '{port.name}' is {given.dtype}; it takes {wanted}.")
            if port.ranks and len(given.shape) not in port.ranks:
                wanted = " or ".join(map(str, port.ranks))
                raise UnsupportedCallError(
                    f"{self.name}: input '{port.name}' has {len(given.shape)} dimensions, {given}; it takes {wanted}."
                )
            if any(not isinstance(size, Size) and isinstance(size, int) and size < 0 for size in given.shape):
                raise UnsupportedCallError(f"{self.name}: input '{port.name}' has a negative size: {given}.")
            by_name[port.name] = given
        known = {attribute.name: attribute for attribute in self.attributes}
        for name in attributes:
            if name not in known:
                options = ", ".join(known) or "none"
                raise UnsupportedCallError(f"{self.name}: there is no attribute '{name}'. Its attributes: {options}.")
        values = {n: a.checked(attributes.get(n, a.default), self.name) for n, a in known.items()}
        call = Call(self.name, inputs, values)
        self.check(call)
        return call

    def check(self, call: Call) -> None:  # noqa: B027  (most operators have more to check, some do not)
        """Raise UnsupportedCallError for shapes and attributes that do not fit each other."""

    @abstractmethod
    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """Dtype and shape of each output."""

    @abstractmethod
    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """The outputs, in numpy, computed in float32 or better and rounded once."""

    @abstractmethod
    def body(self, b: Body) -> None:
        """Write the ONNX function: from `b.inputs`, through standard operators, to `b.returns(...)`. One body serves
        every value of the attributes (`b.attribute(name)`) and every shape."""

    @abstractmethod
    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """The positive numbers that tell the kernel's variants apart (block sizes, mostly), the most likely best one
        first. TensorRT times them all."""

    @abstractmethod
    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """How to compile and launch the kernel for compute capability `sm` (87 for 8.7).

        Raises:
            UnsupportedCallError: not for this size, or not on this target.
        """

    @abstractmethod
    def cost(self, call: Call) -> Cost:
        """What the call costs at the least; shapes must be known."""

    @abstractmethod
    def examples(self) -> tuple[Call, ...]:
        """Calls of real models, for the report; the first is the main one."""

    @abstractmethod
    def small_examples(self) -> tuple[Call, ...]:
        """Calls that between them use every variant of the kernel, dtype and awkward size, and are quick to check:
        sizes of 1, odd sizes, sizes that are no multiple of the block."""

    def sample(self, call: Call, seed: int = 0) -> tuple[NDArray[Any], ...]:
        """Inputs of the call's types: normally distributed, or any integer."""
        import numpy as np

        rng = np.random.default_rng(seed)
        arrays: list[NDArray[Any]] = []
        for given in call.inputs:
            if given.dtype in FLOATS:
                arrays.append(rng.standard_normal(given.sizes).astype(numpy_dtype(given.dtype)))
            elif given.dtype == "bool":
                arrays.append(rng.integers(0, 2, given.sizes).astype(bool))
            else:
                limits = np.iinfo(given.dtype)
                arrays.append(rng.integers(limits.min, limits.max, given.sizes, given.dtype, endpoint=True))
        return tuple(arrays)

    def fuse(self, graph: Graph) -> None:  # noqa: B027  (not every operator has a form of standard nodes)
        """Put this operator's node (`graph.replace`) wherever standard nodes of `graph` compute the same."""

    def in_torch(self, node: Callable[..., Any]) -> Callable[..., Any]:
        """What `plugins_trt.torch.NAME` is. `node` takes this operator's inputs and attributes; it is what users get
        unless they are better served by a function that calls it."""
        return node

    @property
    def domain(self) -> str:
        """The ONNX domain."""
        return DOMAIN

    @property
    def source_path(self) -> Path:
        """The CUDA source: in `kernels/` beside the class that names it, which a subclass elsewhere shares."""
        owner = next(cls for cls in type(self).__mro__ if "kernel_file" in vars(cls))
        return Path(inspect.getfile(owner)).parent / "kernels" / self.kernel_file

    def source(self) -> str:
        """The text of the CUDA source."""
        return self.source_path.read_text()

    def digest(self) -> str:
        """SHA-256 of the kernel's source, of the header it includes and of the operator's own file."""
        header = Path(__file__).parent / "kernels" / "device.cuh"
        parts = (self.source_path, header, Path(inspect.getfile(type(self))))
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in parts)).hexdigest()

    def run_reference(self, *arrays: NDArray[Any], **attributes: Any) -> tuple[NDArray[np.generic], ...]:
        """The outputs for `arrays`, in numpy. Raises UnsupportedCallError as `call` does."""
        types = (TensorType(array.dtype.name, array.shape) for array in arrays)
        return self.reference(self.call(*types, **attributes), *arrays)
