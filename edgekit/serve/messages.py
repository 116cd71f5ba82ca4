"""What is asked and what is answered, whichever door it came through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.tensors import Array, Tensors


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
class WantedOutput:
    """One output that the client asked for.

    `classes` > 0 asks for the top classes as text instead of the tensor; `binary` asks for raw bytes where the door
    has a choice.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(slots=True)
class InferRequest:
    """One inference: tensors by name and what to send back.

    `outputs` empty means all, raw if `binary`.
    """

    feed: Tensors
    id: str = ""
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of an answer: `datatype` is the Open Inference Protocol's name of its type."""

    name: str
    datatype: str
    value: Array
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The answer to one InferRequest."""

    model: str
    version: str
    outputs: tuple[OutputTensor, ...]
    id: str = ""
