"""A machine watched for as long as a service runs: the newest reading, and what has added up since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from edgekit.telemetry.exposition import lines
from edgekit.telemetry.monitor import Monitor, Snapshot
from edgekit.telemetry.sampler import Sampler
from edgekit.telemetry.totals import Totals


class Watch:
    """Reads the machine at `root` in a thread of its own, from `start()` (or `with`) to `stop()`.

        with Watch() as watch:
            watch.now.throttled, watch.now.headroom_c
            "\\n".join(watch.metrics())                  # for Prometheus

    Asking never waits for a sensor. Memory does not grow.
    """

    def __init__(self, root: Path = Path("/"), *, interval_s: float = 0.5, rediscover_s: float = 10.0) -> None:
        """`interval_s` between readings. Raises UsageError if it is not positive."""
        self._monitor = Monitor(root, rediscover_s=rediscover_s)
        self._totals = Totals()
        self._sampler = Sampler(self._read, interval_s=interval_s, keep=2)
        self.reasons = self._monitor.reasons

    def _read(self) -> tuple[Snapshot, Totals]:
        now = self._monitor.read()
        self._totals.add(now)
        return now, self._totals.copy()

    @property
    def now(self) -> Snapshot | None:
        """The newest reading; None until there is one."""
        latest = self._sampler.latest
        return None if latest is None else latest[0]

    @property
    def totals(self) -> Totals | None:
        """Joules and throttle events until the newest reading; a copy that does not change any more."""
        latest = self._sampler.latest
        return None if latest is None else latest[1]

    def metrics(self) -> Iterator[str]:
        """Lines for Prometheus, of one reading; none until there is one."""
        latest = self._sampler.latest
        if latest is not None:
            yield from lines(*latest)

    def start(self) -> None:
        """Start; returns with the first reading, or after two seconds without."""
        self._sampler.start()

    def stop(self) -> None:
        """End; a reading that hangs is left behind."""
        self._sampler.stop()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
