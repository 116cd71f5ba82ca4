"""How much work that carries nothing a client may ask for."""

from __future__ import annotations

from edgekit.serve.h2.frames import Code, ConnectionFault


class Budget:
    """A bucket of `size` units that fills by `rate` a second, and by 8 for each unit of real work done."""

    def __init__(self, size: int, rate: float, now: float) -> None:
        self._size, self._rate = float(size), rate
        self._left, self._at, self._counted = float(size), now, 0

    def spend(self, units: int, *, now: float, done: int) -> None:
        """Take `units`; `done` counts real work since the beginning: answers, and frames of them.

        Raises:
            ConnectionFault: the bucket is empty, which a client in good faith does not bring about.
        """
        self._left -= units
        if self._left >= 0:
            return
        left = self._left + (now - self._at) * self._rate + 8 * (done - self._counted)
        self._left, self._at, self._counted = min(left, self._size), now, done
        if left < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")
