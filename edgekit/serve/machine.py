"""Power, energy and heat of the machine beside the models' counters, read once somebody looks at them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.telemetry.watch import Watch

LOGGER = logging.getLogger(__name__)

INTERVAL_S = 1.0


class MachineWatch:
    """Begins to read the machine at `root` when it is first asked, on a thread: a server that nobody watches does not.

    Asking never waits; the first answers are empty. Of several workers on one machine, one `tells` its metrics.
    """

    def __init__(self, root: Path = Path("/"), *, tells: bool = True) -> None:
        self._root = root
        self.tells = tells
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def lines(self) -> list[str]:
        """Metrics of the machine for Prometheus; energy counts from the first call on."""
        if not self.tells:
            return []
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._begin, name="edgekit-machine", daemon=True)
            self._thread.start()
        return [] if self._watch is None else list(self._watch.metrics())

    def close(self) -> None:
        """End reading."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(5.0)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _begin(self) -> None:
        from edgekit.telemetry.watch import Watch

        try:
            watch = Watch(self._root, interval_s=INTERVAL_S)
            watch.start()
        except Exception:  # models are served whatever the sensors of a machine do
            LOGGER.exception("the machine's sensors cannot be read")
            return
        self._watch = watch
