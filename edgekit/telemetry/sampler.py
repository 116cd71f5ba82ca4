"""A thread that reads at a steady rate while other work runs, and never holds that work up."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from edgekit.errors import SensorError, UsageError

T = TypeVar("T")
PATIENCE_S = 2.0
"""How long the end of a recording waits for a reading that is under way."""
_log = logging.getLogger(__name__)


class Sampler(Generic[T]):
    """Calls `read` every `interval_s` in a thread of its own, from `start()` (or `with`) to `stop()`.

        with Sampler(Monitor().read, interval_s=0.1) as sampler:
            work()
            sampler.latest                      # the newest reading, or None before the first
            sampler.history()                   # the last `keep` readings, oldest first

    Readings that take longer than the interval are followed by the next one that is due; none are made up for. A
    `SensorError` ends the sampling: `failure` keeps its sentence, which is logged once.
    """

    def __init__(self, read: Callable[[], T], *, interval_s: float = 0.1, keep: int = 600) -> None:
        """`keep` bounds the history. Raises UsageError if `interval_s` is not positive or `keep` below 1."""
        if not interval_s > 0:
            raise UsageError(f"A sampler's interval must be positive, got {interval_s} s.")
        if keep < 1:
            raise UsageError(f"A sampler keeps at least one reading, got keep={keep}.")
        self._read, self._interval_s = read, interval_s
        self._history: deque[T] = deque(maxlen=keep)
        self._stop, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="edgekit-sampler", daemon=True)
        self.failure: str | None = None

    @property
    def latest(self) -> T | None:
        """The newest reading."""
        try:
            return self._history[-1]
        except IndexError:
            return None

    def history(self) -> tuple[T, ...]:
        """The readings kept, oldest first."""
        while True:
            try:
                return tuple(self._history)
            except RuntimeError:  # the thread added one meanwhile
                continue

    def start(self) -> None:
        """Start reading; returns when the first reading is there, and after `PATIENCE_S` at the latest."""
        self._thread.start()
        self._first.wait(PATIENCE_S)

    def stop(self) -> bool:
        """Make a last reading and end; False if a reading did not come back within `PATIENCE_S`."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        return not self._thread.is_alive()

    def __enter__(self) -> Sampler[T]:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _loop(self) -> None:
        due_s = time.monotonic()
        last = False
        while True:
            try:
                self._history.append(self._read())
            except SensorError as error:
                self.failure = str(error)
                _log.warning("sampling ends: %s", error)
                return
            finally:
                self._first.set()
            if last:
                return
            due_s = max(due_s + self._interval_s, time.monotonic())
            last = self._stop.wait(due_s - time.monotonic())
