"""Requests that belong together: who gets which state."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.serve.messages import RequestError
from edgekit.serve.sequences import WAITING, Sequences, Turn, turn_of
from edgekit.tensors import TensorSpec

INPUTS = (
    TensorSpec("x", "float32", ("batch", 3)),
    TensorSpec("state", "float32", (2, "batch", 4)),
    TensorSpec("past", "float16", ("batch", 1, "past", 8)),
)
OUTPUTS = (
    TensorSpec("y", "float32", ("batch", 3)),
    TensorSpec("new", "float32", (2, "batch", 4)),
    TensorSpec("present", "float16", ("batch", 1, "total", 8)),
)
STATES = {"state": "new", "past": "present"}


def sequences(**options: float) -> Sequences:
    return Sequences(STATES, INPUTS, OUTPUTS, **options)  # type: ignore[arg-type]


def outputs(value: float, length: int = 1) -> dict[str, np.ndarray]:
    return {
        "y": np.zeros((1, 3), np.float32),
        "new": np.full((2, 1, 4), value, np.float32),
        "present": np.full((1, 1, length, 8), value, np.float16),
    }


START, NEXT, END = Turn(7, True, False), Turn(7, False, False), Turn(7, False, True)


def test_a_sequence_begins_with_zeros_and_goes_on_with_what_was_left() -> None:
    table = sequences()
    open_ = table.enter(START, 0.0)
    feed = {"x": np.zeros((2, 3), np.float32)}
    table.feed(open_, START, feed)
    assert feed["state"].shape == (2, 2, 4)
    assert feed["past"].shape == (2, 1, 0, 8)  # its output calls the dimension by another name: it grows
    assert feed["past"].dtype == np.float16
    table.leave(START, open_, outputs(1, length=5), 0.1)
    feed = {"x": np.zeros((1, 3), np.float32)}
    assert table.enter(NEXT, 0.2) is open_
    table.feed(open_, NEXT, feed)
    assert feed["state"].max() == feed["state"].min() == 1
    assert feed["past"].shape == (1, 1, 5, 8)
    assert table.bytes == 8 * 4 + 40 * 2
    table.leave(END, open_, outputs(2), 0.3)
    assert len(table) == 0
    with pytest.raises(InputError, match="Sequence '7' is not open"):
        table.enter(NEXT, 0.4)


def test_starting_again_forgets_and_a_failure_changes_nothing() -> None:
    table = sequences()
    open_ = table.enter(START, 0.0)
    for turn, answer, expected in ((START, 1, 0), (NEXT, None, 1), (NEXT, 3, 1), (START, 4, 0), (NEXT, 5, 4)):
        feed = {"x": np.zeros((1, 3), np.float32)}
        assert table.enter(turn, 0.0) is open_
        table.feed(open_, turn, feed)
        assert feed["state"].max() == expected
        table.leave(turn, open_, None if answer is None else outputs(answer), 0.0)


def test_a_request_that_waited_while_its_sequence_ended_is_told() -> None:
    table = sequences()
    open_ = table.enter(START, 0.0)
    table.feed(open_, START, {"x": np.zeros((1, 3), np.float32)})
    late = table.enter(NEXT, 0.0)
    table.leave(END, open_, outputs(1), 0.0, more=True)
    with pytest.raises(InputError, match="has ended"):
        table.feed(late, NEXT, {})
    table.leave(NEXT, late, None, 0.0)
    assert len(table) == 0


def test_idle_sequences_make_room_and_busy_ones_do_not() -> None:
    table = sequences(limit=2, idle_s=10.0)
    busy, _idle = table.enter(Turn("a", True, False), 0.0), table.enter(Turn("b", True, False), 1.0)
    busy.busy = True
    with pytest.raises(RequestError, match="2 sequences are open, as many as fit") as caught:
        table.enter(Turn("c", True, False), 5.0)
    assert caught.value.status == 503
    table.enter(Turn("c", True, False), 20.0)
    with pytest.raises(InputError, match="idle for more than 10 s"):
        table.enter(Turn("b", False, False), 20.0)
    assert table.expire(29.0) == 0
    assert table.expire(31.0) == 1


def test_few_requests_of_one_sequence_wait() -> None:
    table = sequences()
    open_ = table.enter(START, 0.0)
    open_.waiting.extend([lambda: None] * WAITING)
    with pytest.raises(RequestError, match="has 64 requests waiting"):
        table.enter(NEXT, 0.0)


def test_what_a_request_says_of_its_sequence() -> None:
    assert turn_of({}) is turn_of({"sequence_id": 0}) is turn_of({"sequence_id": ""}) is None
    assert turn_of({"sequence_id": 3, "sequence_start": True}) == Turn(3, True, False)
    assert turn_of({"sequence_id": "a", "sequence_end": 1}) == Turn("a", False, True)
    for wrong in ({"sequence_id": 1.5}, {"sequence_id": True}, {"sequence_id": 1, "sequence_end": "yes"}):
        with pytest.raises(InputError, match="Parameter sequence_"):
            turn_of(wrong)
    with pytest.raises(InputError, match="at most 128"):
        turn_of({"sequence_id": "a" * 200})


def test_states_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="State 'state' fed by 'old' does not exist"):
        Sequences({"state": "old"}, INPUTS, OUTPUTS)
