"""What every backend offers: named tensors in, named tensors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Protocol, TypeVar, runtime_checkable

from edgekit.tensors import Feed, Tensors, TensorSpec


@runtime_checkable
class Session(Protocol):
    """A loaded variant, ready to run. A context manager; `run` may be called from several threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the inputs."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the outputs."""
        ...

    @property
    def variant(self) -> str:
        """The id of the variant ("int8")."""
        ...

    @property
    def device(self) -> str:
        """Where it runs and how, for people ("ONNX Runtime 1.31, CPU, 2 threads")."""
        ...

    def run(self, feed: Feed) -> Tensors:
        """Run the model once. Arrays of the result are the caller's own.

        Raises:
            InputError: a tensor of `feed` does not fit `inputs`.
            BackendError: the runtime failed.
        """
        ...

    def close(self) -> None:
        """Release the model. Safe to call twice."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


S = TypeVar("S", bound="LoadedSession")


class LoadedSession(ABC):
    """What sessions have in common: facts that stay as they are once a model is loaded, and `with`.

    A backend sets the four facts when it loads, and says how it runs and closes.
    """

    _inputs: tuple[TensorSpec, ...]
    _outputs: tuple[TensorSpec, ...]
    _variant: str
    _device: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the outputs."""
        return self._outputs

    @property
    def variant(self) -> str:
        """The id of the variant."""
        return self._variant

    @property
    def device(self) -> str:
        """Where it runs and how, for people."""
        return self._device

    @abstractmethod
    def run(self, feed: Feed) -> Tensors:
        """See `Session.run`."""

    @abstractmethod
    def close(self) -> None:
        """See `Session.close`."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
