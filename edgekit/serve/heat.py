"""What a server does about heat: when it says that it is not ready, and how far it steps back. Pure: time is given."""

from __future__ import annotations

from collections.abc import Sequence

THROTTLED_S = 3.0
"""A machine that is slowed down for so long is told not to be ready; what is shorter is noise of its governor."""

RECOVERED_S = 10.0
"""It is ready again after so long without."""

STEPS = ("none", "smaller batches", "cheaper variant", "load shedding")
"""What each level adds to those before it."""

_SHARES = (1.0, 0.5, 0.25)
_HYSTERESIS_C = 2.0


class Readiness:
    """Whether a machine that is throttled now and then is ready. `causes` is what keeps it from that."""

    def __init__(self, *, after_s: float = THROTTLED_S, recover_s: float = RECOVERED_S) -> None:
        self._after_s, self._recover_s = after_s, recover_s
        self._since: float | None = None
        self._last = 0.0
        self.causes: tuple[str, ...] = ()

    def update(self, throttled: Sequence[str], now_s: float) -> None:
        """Take in what slows the machine down at `now_s`."""
        if throttled:
            self._since = now_s if self._since is None else self._since
            self._last = now_s
            if now_s - self._since >= self._after_s:
                self.causes = tuple(dict.fromkeys(throttled))
        elif not self.causes or now_s - self._last >= self._recover_s:
            self._since, self.causes = None, ()


class Admission:
    """How far to step back, from the degrees that are left until the machine slows itself down.

    Below `headroom_c`, half and a quarter of it, the `level` is 1, 2 and 3: see `STEPS`. Steps are taken back 2 degrees
    later than they were taken. A machine that tells no headroom stays at 0.
    """

    def __init__(self, headroom_c: float) -> None:
        self._limits = [headroom_c * share for share in _SHARES]
        self.level = 0
        self._asked = 0

    def update(self, headroom_c: float | None) -> bool:
        """Take in a reading. Returns whether the level has changed."""
        before = self.level
        if headroom_c is None:
            self.level = 0
        else:
            reached = sum(headroom_c < limit for limit in self._limits)
            kept = sum(headroom_c < limit + _HYSTERESIS_C for limit in self._limits)
            self.level = max(reached, min(self.level, kept))
        return self.level != before

    def admit(self) -> bool:
        """Whether one more request is taken: at level 3, every other one is not."""
        if self.level < len(STEPS) - 1:
            return True
        self._asked += 1
        return self._asked % 2 == 0
