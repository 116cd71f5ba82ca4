"""What is asked and what is answered, whichever door it came through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import EdgekitError, InputError
from edgekit.tensors import Array, DType, Tensors


class RequestError(EdgekitError):
    """A request that is answered with an error.

    `status` is the HTTP status (another door maps it to its own codes); `retry_after_s` is set when the same
    request may succeed later.
    """

    def __init__(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Place:
    """Where in shared memory a tensor is: `size` bytes from `offset` of a region that was registered."""

    region: str
    offset: int
    size: int

    @classmethod
    def of(cls, what: str, region: Any, offset: Any, size: Any) -> Place:
        """The place that a request's parameters name. Raises InputError, naming `what`, unless they are one."""
        if not isinstance(region, str) or not region:
            raise InputError(f"{what}: shared_memory_region is {region!r}; expected the name of a region.")
        for key, value in (("shared_memory_offset", offset), ("shared_memory_byte_size", size)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
                raise InputError(f"{what}: {key} is {value!r}; expected a number of bytes.")
        return cls(region, offset, size)


@dataclass(frozen=True, slots=True)
class SharedInput:
    """An input that is in shared memory."""

    dtype: DType
    shape: tuple[int, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output that the client asked for.

    `classes` > 0 asks for the top classes as text instead of the tensor; `binary` asks for raw bytes where the door
    has a choice; with `place`, the tensor is to be written there and not sent.
    """

    name: str
    binary: bool = False
    classes: int = 0
    place: Place | None = None


@dataclass(slots=True)
class InferRequest:
    """One inference: tensors by name and what to send back.

    `outputs` empty means all, raw if `binary`. `shared` are inputs that are still to be read from shared memory.
    A run that has not begun `timeout_s` after the request came is given up. `tag` names it in logs if `id` does not;
    `traceparent` is the trace that it belongs to.
    """

    feed: Tensors
    id: str = ""
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, SharedInput] = field(default_factory=dict)
    timeout_s: float | None = None
    tag: str = ""
    traceparent: str = ""


@dataclass(slots=True)  # not frozen, which would triple the time to make one
class OutputTensor:
    """One output of an answer: `datatype` is the Open Inference Protocol's name of its type.

    With `place`, its bytes are there already.
    """

    name: str
    datatype: str
    value: Array
    binary: bool = False
    place: Place | None = None


@dataclass(slots=True)  # not frozen, which would triple the time to make one
class InferResponse:
    """The answer to one InferRequest. `energy`: joules of its run, and how they are known."""

    model: str
    version: str
    outputs: tuple[OutputTensor, ...]
    id: str = ""
    energy: tuple[float, str] | None = None
