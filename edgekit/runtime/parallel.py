"""One session a device behind one front: more requests a second, each as fast as on one device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

from edgekit.errors import BackendError, UsageError
from edgekit.runtime.session import Session
from edgekit.tensors import Feed, Tensors, TensorSpec


class ParallelSession:
    """Sends each run to the session with the fewest under way; the sessions are of one model, each on its own device.

        session = ParallelSession([open_session(package, device=f"cuda:{i}") for i in range(4)])

    It gains only with as many callers at once as there are devices. Closing it closes them all.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        """Takes over `sessions`. Raises UsageError: none, or their inputs or outputs differ."""
        if not sessions:
            raise UsageError("A front needs at least one session; expected one a device.")
        first = sessions[0]
        for other in sessions[1:]:
            if _kinds(other.inputs) != _kinds(first.inputs) or _kinds(other.outputs) != _kinds(first.outputs):
                raise UsageError(
                    f"Variants '{first.variant}' and '{other.variant}' have different inputs or outputs. "
                    "Open the same variant on every device."
                )
        self._sessions = tuple(sessions)
        self._busy = [0] * len(sessions)
        self._turn = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the inputs."""
        return self._sessions[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes of the outputs."""
        return self._sessions[0].outputs

    @property
    def variant(self) -> str:
        """The variants that run, each once."""
        return ", ".join(dict.fromkeys(s.variant for s in self._sessions))

    @property
    def device(self) -> str:
        """Where they run, for people."""
        return "; ".join(s.device for s in self._sessions)

    @property
    def lanes(self) -> int:
        """Runs that may usefully be under way at once."""
        return sum(getattr(s, "lanes", 1) for s in self._sessions)

    def run(self, feed: Feed) -> Tensors:
        """Run once on the device with the fewest runs under way, in turn where they are equal; see `Session.run`."""
        with self._lock:
            if self._closed:
                raise BackendError("This session is closed. Open a new one.")
            count = len(self._sessions)
            order = ((self._turn + i) % count for i in range(count))
            index = min(order, key=lambda i: self._busy[i])
            self._turn = index + 1
            self._busy[index] += 1
        try:
            return self._sessions[index].run(feed)
        finally:
            with self._lock:
                self._busy[index] -= 1

    def close(self) -> None:
        """Close every session. Safe to call twice."""
        with self._lock:
            self._closed = True
        for session in self._sessions:
            session.close()

    def __enter__(self) -> ParallelSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kinds(specs: Sequence[TensorSpec]) -> list[tuple[str, str, int]]:
    """Names, types and ranks: an engine and an ONNX model may name their free dimensions differently."""
    return [(s.name, s.dtype, len(s.shape)) for s in specs]
