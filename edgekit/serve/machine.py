"""Power, energy and heat of the machine beside the models' counters, read once somebody looks at them."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.serve.heat import Readiness

if TYPE_CHECKING:
    from edgekit.telemetry.monitor import Snapshot
    from edgekit.telemetry.watch import Watch

LOGGER = logging.getLogger(__name__)

INTERVAL_S = 1.0


class MachineWatch:
    """Begins to read the machine at `root` when it is first asked, on a thread: a server that nobody watches does not.

    With `guards`, it begins at once if the machine has a way to say that it is slowed down: `causes` is then what keeps
    it from being ready. Asking never waits; the first answers are empty. Of several workers on one machine, one `tells`
    its metrics.
    """

    def __init__(self, root: Path = Path("/"), *, tells: bool = True, guards: bool = False) -> None:
        self._root, self._live = root, root == Path("/")
        self.guards = guards
        self._readiness = Readiness()
        self.tells = tells
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def lines(self) -> list[str]:
        """Metrics of the machine for Prometheus; energy counts from the first call on."""
        if not self.tells:
            return []
        self.begin()
        return [] if self._watch is None else list(self._watch.metrics())

    def begin(self, *, if_it_throttles: bool = False) -> None:
        """Begin to read; with `if_it_throttles` only a machine that names causes for which it is slowed down."""
        if self._thread is None and not self._closed:
            work = partial(self._begin, if_it_throttles)
            self._thread = threading.Thread(target=work, name="edgekit-machine", daemon=True)
            self._thread.start()

    @property
    def now(self) -> Snapshot | None:
        """The newest reading; None before the first."""
        return None if self._watch is None else self._watch.now

    @property
    def headroom_c(self) -> float | None:
        """Degrees until the machine slows itself down; None where it does not tell."""
        now = self.now
        return None if now is None else now.headroom_c

    @property
    def causes(self) -> tuple[str, ...]:
        """What has slowed the machine down for a while, if that is looked at."""
        return self._readiness.causes

    @property
    def unready(self) -> str:
        """Why the machine is not ready; empty if it is."""
        return f"the machine is slowed down by {', '.join(self.causes)}" if self.causes else ""

    def update(self, now_s: float) -> None:
        """Look at the newest reading; to be called about once a second."""
        now = self.now if self.guards else None
        if now is None:
            return
        before = self.causes
        self._readiness.update(now.throttled, now_s)
        if self.causes and not before:
            LOGGER.warning("not ready: the machine is slowed down by %s", ", ".join(self.causes))
        elif before and not self.causes:
            LOGGER.warning("ready again: the machine is not slowed down any more")

    def close(self) -> None:
        """End reading."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(5.0)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _begin(self, if_it_throttles: bool) -> None:
        from edgekit.telemetry.gpus import find_gpus
        from edgekit.telemetry.throttle import find_throttles
        from edgekit.telemetry.watch import Watch

        try:
            if if_it_throttles and not find_throttles(self._root) and not (self._live and find_gpus()[0]):
                self._thread = None  # who asks for metrics begins again
                return
            watch = Watch(self._root, interval_s=INTERVAL_S)
            watch.start()
        except Exception:  # models are served whatever the sensors of a machine do
            LOGGER.exception("the machine's sensors cannot be read")
            return
        self._watch = watch
