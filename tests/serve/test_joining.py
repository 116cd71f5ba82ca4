"""Several requests as one run: what each gets is what it would have got alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BackendError, InputError
from edgekit.serve.joining import Joiner
from edgekit.tensors import Tensors, TensorSpec

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 3))
IDS = TensorSpec("ids", "int64", ("batch", "length"))
HIDDEN = TensorSpec("hidden", "int64", ("batch", "length", 2))


def rows(count: int, start: float = 0) -> Tensors:
    return {"x": (np.arange(count * 3, dtype=np.float32) + start).reshape(count, 3)}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_split_is_the_inverse_of_join(counts: list[int]) -> None:
    joiner = Joiner([X], [Y])
    parts = [joiner.check(rows(n, 100 * i)) for i, n in enumerate(counts)]
    assert len({p.key for p in parts}) == 1
    feed = joiner.join(parts)
    assert feed["x"].shape == (sum(counts), 3)
    for part, own in zip(parts, joiner.split({"y": feed["x"] * 2}, parts)):
        np.testing.assert_array_equal(own["y"], part.feed["x"] * 2)


def test_what_comes_out_shares_the_memory_of_the_run() -> None:
    joiner = Joiner([X], [Y])
    parts = [joiner.check(rows(1)), joiner.check(rows(2))]
    y = np.zeros((3, 3), np.float32)
    assert all(np.shares_memory(own["y"], y) for own in joiner.split({"y": y}, parts))
    assert joiner.join(parts[:1])["x"] is parts[0].feed["x"]


def test_the_batch_of_a_state_need_not_be_in_front() -> None:
    state = TensorSpec("state", "float32", (2, "batch", 4))
    joiner = Joiner([X, state], [Y, TensorSpec("next", "float32", (2, "batch", 4))])
    parts = [joiner.check({**rows(n), "state": np.full((2, n, 4), n, np.float32)}) for n in (1, 3)]
    feed = joiner.join(parts)
    assert feed["state"].shape == (2, 4, 4)
    own = joiner.split({"y": feed["x"], "next": feed["state"]}, parts)
    np.testing.assert_array_equal(own[1]["next"], np.full((2, 3, 4), 3, np.float32))


def test_inputs_without_a_batch_join_only_where_they_are_equal() -> None:
    rate = TensorSpec("rate", "int64", ())
    joiner = Joiner([X, rate], [Y])
    a, b, c = (joiner.check({**rows(1), "rate": np.array(r)}) for r in (8000, 16000, 8000))
    assert a.key == c.key != b.key
    table = TensorSpec("table", "float32", (100,))
    large = Joiner([X, table], [Y]).check({**rows(1), "table": np.zeros(100, np.float32)})
    assert large.key is None


def test_models_without_a_free_batch_or_with_shared_outputs_are_not_joined() -> None:
    total = TensorSpec("total", "float32", ())
    assert Joiner([X], [Y]).joinable
    assert not Joiner([X], [Y, total]).joinable
    assert not Joiner([TensorSpec("x", "float32", (1, 3))], [TensorSpec("y", "float32", (1, 3))]).joinable
    assert not Joiner([], [Y]).joinable
    assert Joiner([X], [total]).check(rows(1)).key is None
    assert Joiner([X], [Y]).check(rows(0)).key is None


def test_other_shapes_have_other_keys_and_wrong_ones_are_refused_each_time() -> None:
    joiner = Joiner([IDS], [HIDDEN])
    a, b = (joiner.check({"ids": np.zeros((1, n), np.int64)}) for n in (3, 4))
    assert a.key != b.key
    for _ in range(2):
        with pytest.raises(InputError, match="got float32, this model accepts int64"):
            joiner.check({"ids": np.zeros((1, 3), np.float32)})


def test_what_is_converted_once_is_converted_each_time() -> None:
    half = TensorSpec("x", "float16", ("batch", 3))
    joiner = Joiner([half], [Y])
    for _ in range(3):
        assert joiner.check(rows(2)).feed["x"].dtype == np.float16


def test_dimensions_are_padded_into_buckets_and_cut_again() -> None:
    joiner = Joiner([IDS], [HIDDEN], buckets={"length": (8, 4)}, pad={"ids": -1})
    parts = [joiner.check({"ids": np.full((n, length), length, np.int64)}) for n, length in ((1, 2), (2, 4), (1, 3))]
    assert len({p.key for p in parts}) == 1
    feed = joiner.join(parts)
    assert feed["ids"].tolist() == [[2, 2, -1, -1], [4] * 4, [4] * 4, [3, 3, 3, -1]]
    hidden = np.repeat(feed["ids"][:, :, None], 2, axis=2)
    assert [own["hidden"].shape for own in joiner.split({"hidden": hidden}, parts)] == [(1, 2, 2), (2, 4, 2), (1, 3, 2)]
    assert joiner.join(parts[:1])["ids"].tolist() == [[2, 2, -1, -1]]
    assert joiner.check({"ids": np.zeros((1, 7), np.int64)}).key != parts[0].key
    with pytest.raises(InputError, match="dimension 'length' is 9, this server takes at most 8"):
        joiner.check({"ids": np.zeros((1, 9), np.int64)})


def test_joined_rows_are_padded_too_where_the_batch_has_buckets() -> None:
    joiner = Joiner([X], [Y], buckets={"batch": (1, 4)})
    assert joiner.pads
    parts = [joiner.check(rows(1, i)) for i in range(3)]
    feed = joiner.join(parts)
    assert feed["x"].shape == (4, 3)
    assert [own["y"].tolist() for own in joiner.split({"y": feed["x"]}, parts)] == [p.feed["x"].tolist() for p in parts]
    many = [joiner.check(rows(5))]
    assert joiner.join(many)["x"].shape == (5, 3)


def test_what_does_not_fit_the_model_is_said() -> None:
    with pytest.raises(InputError, match="no dimension 'width' to pad; this model has batch"):
        Joiner([X], [Y], buckets={"width": (4,)})
    joiner = Joiner([X], [Y])
    parts = [joiner.check(rows(1)), joiner.check(rows(1))]
    with pytest.raises(BackendError, match="has 1 rows for 2 that went in"):
        joiner.split({"y": np.zeros((1, 3), np.float32)}, parts)
