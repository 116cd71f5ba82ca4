"""Requests that belong together: what a model leaves behind in one is fed to it in the next.

Which output becomes which input, the package's manifest says (`states`). Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.errors import InputError
from edgekit.serve.messages import RequestError
from edgekit.tensors import Tensors, TensorSpec, batch_axis, numpy_dtype

WAITING = 64
"""Requests of one sequence that may wait for the one before; more are refused."""

STATE_BYTES = 1 << 30
"""States of all sequences of one model, together."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request says of its sequence."""

    id: int | str
    start: bool
    end: bool


def turn_of(parameters: Mapping[str, Any]) -> Turn | None:
    """The sequence that a request's parameters name, or None (no id, 0, or "").

    Raises:
        InputError: a parameter is not of its type.
    """
    given = parameters.get("sequence_id", 0)
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise InputError(f"Parameter sequence_id is {given!r}; expected a number or a text.")
    if not given:
        return None
    flags = []
    for name in ("sequence_start", "sequence_end"):
        flag = parameters.get(name, False)
        if not isinstance(flag, (bool, int)):
            raise InputError(f"Parameter {name} is {flag!r}; expected true or false.")
        flags.append(bool(flag))
    if isinstance(given, str) and len(given) > 128:
        raise InputError(f"Parameter sequence_id has {len(given)} characters; expected at most 128.")
    return Turn(given, *flags)


@dataclass(slots=True, eq=False)
class OpenSequence:
    """One client's sequence: its states, and the requests that wait for their turn."""

    states: Tensors = field(default_factory=dict)
    begun: bool = False
    busy: bool = False
    last_s: float = 0.0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)

    @property
    def bytes(self) -> int:
        """Memory of the states."""
        return sum(v.nbytes for v in self.states.values())


class Sequences:
    """The sequences of one model.

    Args:
        states: the input that each state output feeds, as {input: output}.
        inputs: the model's inputs.
        outputs: the model's outputs.
        limit: sequences at one time.
        idle_s: a sequence without a request for so long is forgotten.

    Raises:
        InputError: `states` names what is not there.
    """

    def __init__(
        self,
        states: Mapping[str, str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        limit: int = 1024,
        idle_s: float = 60.0,
    ) -> None:
        self._inputs = tuple(inputs)
        by_input, by_output = {s.name: s for s in inputs}, {s.name: s for s in outputs}
        for name, source in states.items():
            if name not in by_input or source not in by_output:
                raise InputError(
                    f"State '{name}' fed by '{source}' does not exist: inputs are {', '.join(by_input)}, outputs "
                    f"{', '.join(by_output)}."
                )
        self.states = dict(states)
        self.outputs = frozenset(states.values())
        self._pairs = {name: (by_input[name], by_output[source]) for name, source in states.items()}
        self._limit, self._idle_s = limit, idle_s
        self._open: dict[int | str, OpenSequence] = {}

    def __len__(self) -> int:
        """Sequences that are open."""
        return len(self._open)

    def __contains__(self, id_: int | str) -> bool:
        """Whether the sequence is open."""
        return id_ in self._open

    @property
    def bytes(self) -> int:
        """Memory of all states."""
        return sum(s.bytes for s in self._open.values())

    def enter(self, turn: Turn, now_s: float) -> OpenSequence:
        """The sequence of `turn`, opened if it starts.

        Raises:
            InputError: it has not started, or its state was forgotten.
            RequestError: too many sequences (503), or too many requests of this one (503).
        """
        sequence = self._open.get(turn.id)
        if sequence is None:
            if not turn.start:
                raise InputError(
                    f"Sequence '{turn.id}' is not open: it ended, was idle for more than {self._idle_s:g} s, or never "
                    "began. Begin with sequence_start."
                )
            if len(self._open) >= self._limit:
                self.expire(now_s)
            if len(self._open) >= self._limit or self.bytes > STATE_BYTES:
                raise RequestError(
                    503, f"{len(self._open)} sequences are open, as many as fit. Try again later.", retry_after_s=1
                )
            sequence = self._open[turn.id] = OpenSequence()
        if len(sequence.waiting) >= WAITING:
            raise RequestError(503, f"Sequence '{turn.id}' has {WAITING} requests waiting already.", retry_after_s=1)
        sequence.last_s = now_s
        return sequence

    def feed(self, sequence: OpenSequence, turn: Turn, feed: Tensors) -> None:
        """Add to `feed` the states that it does not hold: those left by the request before, or zeros at a start.

        Raises:
            InputError: the sequence ended while this request waited.
        """
        if turn.start:
            sequence.states, sequence.begun = {}, True
        elif not sequence.begun:
            raise InputError(f"Sequence '{turn.id}' has ended. Begin again with sequence_start.")
        rows = self._rows(feed)
        for name, (spec, source) in self._pairs.items():
            if name not in feed:
                kept = sequence.states.get(name)
                feed[name] = self._initial(spec, source, rows) if kept is None else kept

    def leave(
        self, turn: Turn, sequence: OpenSequence, outputs: Tensors | None, now_s: float, *, more: bool = False
    ) -> None:
        """A request of `sequence` is answered with `outputs` (None: it failed, and the states are as before).

        With `more`, another one of it is about to run.
        """
        sequence.last_s = now_s
        if outputs is not None:
            # own memory, not a view that keeps a whole joined run alive
            new = {name: outputs[source] for name, source in self.states.items()}
            sequence.states = {n: v if v.base is None else v.copy() for n, v in new.items()}
        if turn.end or not sequence.begun:
            sequence.begun, sequence.states = False, {}
            if not more:
                self._open.pop(turn.id, None)

    def expire(self, now_s: float) -> int:
        """Forget the sequences that are idle too long; how many those were."""
        late = [k for k, s in self._open.items() if not s.busy and now_s - s.last_s > self._idle_s]
        for key in late:
            del self._open[key]
        return len(late)

    def _rows(self, feed: Tensors) -> int:
        for spec in self._inputs:
            axis = batch_axis(spec, self._inputs)
            if spec.name in feed and axis is not None and feed[spec.name].ndim > axis:
                return int(feed[spec.name].shape[axis])
        return 1

    def _initial(self, spec: TensorSpec, source: TensorSpec, rows: int) -> np.ndarray[Any, Any]:
        """Zeros. A free dimension that its output calls by another name grows, and so begins with 0 (a KV cache)."""
        axis = batch_axis(spec, self._inputs)
        shape = []
        for i, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                shape.append(dim)
            elif i == axis:
                shape.append(rows)
            else:
                grows = len(source.shape) == len(spec.shape) and source.shape[i] != dim
                shape.append(0 if grows else 1)
        return np.zeros(shape, numpy_dtype(spec.dtype))
