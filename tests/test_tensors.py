from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.tensors import (
    FeedChecker,
    TensorSpec,
    batches,
    check_feed,
    dtype_from_oip,
    dtype_of,
    join,
    run_in_batches,
    sample_count,
    with_defaults,
)

X = TensorSpec("x", "float32", ("batch", 2))
STATE = TensorSpec("state", "float32", (2, "batch", 3))
RATE = TensorSpec("rate", "int64", ())


def feed(rows: int) -> dict[str, np.ndarray]:
    return {
        "x": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        "state": np.arange(2 * rows * 3, dtype=np.float32).reshape(2, rows, 3),
        "rate": np.asarray(16000),
    }


def test_a_good_feed_comes_back_in_order() -> None:
    assert list(check_feed(dict(reversed(feed(3).items())), (X, STATE, RATE))) == ["x", "state", "rate"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "'x' is missing"),
        ({"x": np.zeros((3, 2))}, "got float64, this model accepts float32"),
        ({"x": np.zeros((3, 5), np.float32)}, r"got \(3,5\), this model accepts \(batch,2\)"),
        ({"x": np.zeros(2, np.float32)}, r"got \(2\)"),
        ({"x": np.zeros((4, 2), np.float32)}, "'batch' is 3 but 'x' has 4"),
        ({"extra": np.zeros(1)}, "'extra' is not an input"),
    ],
)
def test_a_feed_that_does_not_fit_is_named(change: dict[str, np.ndarray | None], words: str) -> None:
    changed = {k: v for k, v in {**feed(3), **change}.items() if v is not None}
    with pytest.raises(InputError, match=words):
        check_feed(changed, (X, STATE, RATE))


def test_batches_follow_the_batch_dimension_wherever_it_stands() -> None:
    parts = list(batches(feed(7), (X, STATE, RATE), 3))
    assert [p["x"].shape[0] for p in parts] == [3, 3, 1]
    assert [p["state"].shape for p in parts] == [(2, 3, 3), (2, 3, 3), (2, 1, 3)]
    assert all(p["rate"] == 16000 for p in parts)
    joined = join(parts, (X, STATE, RATE), (X, STATE, RATE))
    for name, value in feed(7).items():
        np.testing.assert_array_equal(joined[name], value)


def test_a_fixed_batch_goes_one_sample_at_a_time() -> None:
    fixed = (TensorSpec("image", "float32", (1, 4)),)
    images = {"image": np.arange(12, dtype=np.float32).reshape(3, 4)}
    assert sample_count(images, fixed) == 3
    seen: list[tuple[int, ...]] = []

    def run(one: object) -> dict[str, np.ndarray]:
        array = one["image"]  # type: ignore[index]
        seen.append(array.shape)
        return {"y": array * 2}

    out = run_in_batches(run, images, inputs=fixed, outputs=(TensorSpec("y", "float32", (1, 4)),))
    assert seen == [(1, 4)] * 3
    np.testing.assert_array_equal(out["y"], images["image"] * 2)


def test_types_have_one_name_each() -> None:
    assert dtype_of("float16").oip == "FP16"
    assert dtype_from_oip("BF16").name == "bfloat16"
    with pytest.raises(InputError, match="FP12"):
        dtype_from_oip("FP12")


def test_a_remembered_feed_is_checked_as_before() -> None:
    half, whole = TensorSpec("h", "float16", ("n", 2)), TensorSpec("w", "int64", ("n",))
    check = FeedChecker((half, whole))
    for _ in range(3):
        got = check({"w": np.zeros(3, np.int64), "h": np.zeros((3, 2), np.float16)})
        assert {k: v.shape for k, v in got.items()} == {"w": (3,), "h": (3, 2)}
        assert check({"h": np.zeros((4, 4), np.float16)[::2, ::2], "w": np.zeros(2, np.int64)})["h"].flags.c_contiguous
        for wrong in (
            {"h": np.zeros((3, 2), np.float16)},
            {"h": np.zeros((3, 2), np.float16), "w": np.zeros(4, np.int64)},
        ):
            with pytest.raises(InputError):
                check(wrong)


def test_defaults_take_the_sizes_of_what_is_given() -> None:
    specs = [TensorSpec("x", "float32", ("n", 2)), TensorSpec("k", "int64", ("n",)), TensorSpec("s", "float32", ())]
    defaults = {"k": np.array(7), "s": np.array(0.5, np.float32), "other": np.ones(3)}
    feed = with_defaults({"x": np.ones((3, 2), np.float32)}, defaults, specs)
    assert feed["k"].tolist() == [7, 7, 7]
    assert feed["s"].shape == ()
    assert set(feed) == {"x", "k", "s"}
    assert with_defaults({"k": np.array([1])}, defaults, specs)["k"].tolist() == [1]
    odd = with_defaults({"x": np.ones((3, 2), np.float32)}, {"k": np.arange(2)}, specs)
    with pytest.raises(InputError, match="'k'"):
        check_feed(odd | {"s": defaults["s"]}, specs)
