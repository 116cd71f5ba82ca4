"""A session without a model, for testing services built on edgekit. Part of the product, not of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from edgekit.errors import BackendError
from edgekit.runtime.session import LoadedSession
from edgekit.tensors import Feed, Tensors, TensorSpec, check_feed


class FakeSession(LoadedSession):
    """Runs a Python function where a model would be.

        session = FakeSession([TensorSpec("x", "float32", ("batch", 4))], [TensorSpec("y", "float32", ("batch",))],
                              lambda feed: {"y": feed["x"].sum(axis=1)})

    `latency_s` is slept in each call; `calls` counts them; `fail` (an exception) is raised by the next calls.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        function: Callable[[Tensors], Tensors],
        *,
        variant: str = "fake",
        latency_s: float = 0.0,
    ) -> None:
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._function = function
        self._variant, self._device = variant, "fake"
        self._lock = threading.Lock()
        self._closed = False
        self.latency_s = latency_s
        self.calls = 0
        self.fail: Exception | None = None

    def run(self, feed: Feed) -> Tensors:
        """Check the feed, wait `latency_s`, call the function. Raises BackendError once closed."""
        if self._closed:
            raise BackendError("This session is closed. Open a new one.")
        checked = check_feed(feed, self._inputs)
        with self._lock:
            self.calls += 1
        if self.latency_s:
            time.sleep(self.latency_s)
        if self.fail is not None:
            raise self.fail
        return self._function(checked)

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True
