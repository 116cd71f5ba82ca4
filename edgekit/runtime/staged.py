"""Several models one after the other as one session; on several devices they work on several requests at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from edgekit.errors import BackendError, UsageError
from edgekit.runtime.session import LoadedSession, Session
from edgekit.tensors import Feed, Tensors, TensorSpec, check_feed


@dataclass(frozen=True)
class StageRun:
    """One stage: its session, and which tensors of the whole its inputs take and its outputs set down."""

    name: str
    session: Session
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class StagedSession(LoadedSession):
    """Runs stages in order; each takes tensors by name from the feed and from the stages before it.

    With `split` the stages are on devices of their own and each serves one run at a time, so that runs of several
    callers (or of `run_many`) follow each other through the devices and all of them work. Closing it closes them all.
    """

    def __init__(
        self,
        stages: Sequence[StageRun],
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        split: bool = False,
    ) -> None:
        """Takes over the sessions of `stages`. Raises UsageError: a tensor that nothing before it gives."""
        if not stages:
            raise UsageError("A session of stages needs at least one stage.")
        known = {s.name for s in inputs}
        for stage in stages:
            for own, tensor in stage.inputs.items():
                if tensor not in known:
                    raise UsageError(f"Input '{own}' of stage '{stage.name}' takes '{tensor}', which nothing gives.")
            known |= set(stage.outputs.values())
        for spec in outputs:
            if spec.name not in known:
                raise UsageError(f"Output '{spec.name}' is given by no stage.")
        self._stages = tuple(stages)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._variant = ", ".join(f"{s.name} {s.session.variant}" for s in stages)
        places = list(dict.fromkeys(s.session.device for s in stages))
        self._device = places[0] if len(places) == 1 else "; ".join(f"{s.name}: {s.session.device}" for s in stages)
        self._done_with = _last_uses(stages, {s.name for s in outputs})
        self._gates: list[AbstractContextManager[object]] = [
            threading.Lock() if split else nullcontext() for _ in stages
        ]
        self._split = split
        self._closed = False

    @property
    def lanes(self) -> int:
        """Runs that may usefully be under way at once."""
        return len(self._stages) if self._split else 1

    def run(self, feed: Feed) -> Tensors:
        """Run every stage once; see `Session.run`. An error of a stage names the stage."""
        if self._closed:
            raise BackendError("This session is closed. Open a new one.")
        values: Tensors = dict(check_feed(feed, self._inputs))
        for stage, gate, done in zip(self._stages, self._gates, self._done_with):
            own = {name: values[tensor] for name, tensor in stage.inputs.items()}
            with gate:
                found = stage.session.run(own)
            values.update({tensor: found[name] for name, tensor in stage.outputs.items()})
            for tensor in done:
                values.pop(tensor, None)
        return {s.name: values[s.name] for s in self._outputs}

    def run_many(self, feeds: Iterable[Feed]) -> Iterator[Tensors]:
        """The outputs of each feed, in order, with as many runs under way as there are stages."""
        with ThreadPoolExecutor(len(self._stages), thread_name_prefix="stages") as pool:
            window: deque[Future[Tensors]] = deque()
            for feed in feeds:
                window.append(pool.submit(self.run, feed))
                if len(window) > len(self._stages):
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()

    def close(self) -> None:
        """Close every stage. Safe to call twice."""
        self._closed = True
        for stage in self._stages:
            stage.session.close()


def _last_uses(stages: Sequence[StageRun], kept: set[str]) -> list[tuple[str, ...]]:
    """For each stage the tensors that nobody needs once it has run: their memory is let go."""
    needed = set(kept)
    out: list[tuple[str, ...]] = []
    for stage in reversed(stages):
        seen = set(stage.inputs.values()) | set(stage.outputs.values())
        out.append(tuple(seen - needed))
        needed |= set(stage.inputs.values())
    return out[::-1]
