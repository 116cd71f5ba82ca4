"""Which waiting requests run next, and which of them together.

Pure: time is an argument, and nothing here waits, locks or runs a model.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from edgekit.serve.messages import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How requests wait and join.

    Attributes:
        max_rows: rows that one run takes at most; 1 joins nothing. A request with more rows runs alone.
        preferred: numbers of rows to wait for, up to `delay_s`; with none, `max_rows` is what is waited for.
        delay_s: how long the first request of a run may wait for others to join it.
        limit: requests that may wait; more are refused.
        levels: priorities; 1 is served first, `levels` last.
        default_level: the priority of a request that names none.
    """

    max_rows: int = 1
    preferred: tuple[int, ...] = ()
    delay_s: float = 0.0
    limit: int = 256
    levels: int = 1
    default_level: int = 1


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A waiting request. Those with an equal `key` may run together; None is equal to none.

    `priority` 0 stands for the policy's default; `deadline_s` is when its run must have begun, on the clock of `push`.
    """

    rows: int = 1
    key: Hashable = None
    priority: int = 0
    deadline_s: float | None = None
    order: int = field(default=0, init=False)
    due_s: float = field(default=0.0, init=False)
    waiting: bool = field(default=False, init=False)


class Batcher:
    """The requests that wait for one model, first come first served within a priority.

    Requests with another key do not hold up those behind them, but the one that waits longest is never passed over
    once its delay is over.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._levels: list[dict[Hashable, deque[Ticket]]] = [{} for _ in range(policy.levels)]
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._orders = 0
        self._count = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._count

    def push(self, ticket: Ticket, now_s: float) -> Ticket | None:
        """Let `ticket` wait. Returns the one that had to make room for it: the last of a lower priority.

        Raises:
            RequestError: there is no room (503), or no such priority (400).
        """
        policy = self.policy
        level = ticket.priority or policy.default_level
        if not 1 <= level <= policy.levels:
            raise RequestError(400, f"Priority {ticket.priority} does not exist; this model has 1 to {policy.levels}.")
        displaced = self._make_room(level) if self._count >= policy.limit else None
        self._orders += 1
        ticket.order, ticket.waiting = self._orders, True
        ticket.due_s = now_s + policy.delay_s
        if ticket.deadline_s is not None:
            if len(self._deadlines) > 2 * policy.limit:  # most have run long before their deadline
                self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (ticket.deadline_s, ticket.order, ticket))
            if ticket.deadline_s <= ticket.due_s:  # there is no time to wait for others
                ticket.due_s = now_s
        key = ticket if ticket.key is None or ticket.rows >= policy.max_rows else ticket.key
        self._levels[level - 1].setdefault(key, deque()).append(ticket)
        self._count += 1
        return displaced

    def next_batch(self, now_s: float) -> list[Ticket]:
        """The requests to run now, together; empty when none is ready. They wait no longer."""
        for level, key, group in self._groups():
            chosen, due_s = self._choose(group)
            if chosen and due_s <= now_s:
                for ticket in chosen:
                    ticket.waiting = False
                self._count -= len(chosen)
                self._clean(level, key)
                return chosen
        return []

    def expire(self, now_s: float) -> list[Ticket]:
        """The requests whose deadline has come, earliest first. They wait no longer."""
        out = []
        while self._deadlines and (self._deadlines[0][0] <= now_s or not self._deadlines[0][2].waiting):
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.waiting:
                self._drop(ticket)
                out.append(ticket)
        return out

    def cancel(self, ticket: Ticket) -> bool:
        """Forget `ticket`; False if it does not wait (any more)."""
        if not ticket.waiting:
            return False
        self._drop(ticket)
        return True

    def wake_s(self) -> float | None:
        """When `next_batch` or `expire` may next have something; None while nothing waits."""
        times = [due for _, _, group in self._groups() for tickets, due in (self._choose(group),) if tickets]
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def _groups(self) -> Iterator[tuple[int, Hashable, deque[Ticket]]]:
        """Groups of one key, those to be served first in front."""
        for level, groups in enumerate(self._levels):
            if len(groups) > 1:
                for key in list(groups):
                    self._clean(level, key)
                ranked = sorted(groups.items(), key=lambda item: item[1][0].order)
            else:
                ranked = list(groups.items())
            for key, group in ranked:
                yield level, key, group

    def _choose(self, group: deque[Ticket]) -> tuple[list[Ticket], float]:
        """What of `group` would run, and from when on: at once if it is a whole batch."""
        policy = self.policy
        chosen: list[Ticket] = []
        rows, due_s, whole = 0, math.inf, 0
        for ticket in group:
            if not ticket.waiting:
                continue
            if chosen and rows + ticket.rows > policy.max_rows:
                return (chosen[:whole] if whole else chosen), -math.inf
            chosen.append(ticket)
            rows += ticket.rows
            due_s = min(due_s, ticket.due_s)
            if rows in policy.preferred:
                whole = len(chosen)
            if rows >= policy.max_rows:
                return chosen, -math.inf
        if whole:
            return chosen[:whole], -math.inf
        return chosen, due_s

    def _make_room(self, level: int) -> Ticket:
        for groups in reversed(self._levels[level:]):
            waiting = [t for group in groups.values() for t in group if t.waiting]
            if waiting:
                last = max(waiting, key=lambda t: t.order)
                self._drop(last)
                return last
        raise RequestError(
            503, f"The model has {self._count} requests waiting. Send this one again later.", retry_after_s=1
        )

    def _drop(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._count -= 1
        level = (ticket.priority or self.policy.default_level) - 1
        for key in (ticket, ticket.key):
            self._clean(level, key)

    def _clean(self, level: int, key: Hashable) -> None:
        """Let go of what no longer waits at the front of a group, and of an empty group."""
        group = self._levels[level].get(key)
        if group is None:
            return
        while group and not group[0].waiting:
            group.popleft()
        if not group:
            del self._levels[level][key]
