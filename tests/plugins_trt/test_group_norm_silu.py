from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.group_norm_silu import GroupNormSilu
from plugins_trt.operator import TensorType, numpy_dtype
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

OP = GroupNormSilu()


def arrays(shape: tuple[int, ...], dtype: str, seed: int, *, last: int = 0, mean: float = 0.0) -> list[Any]:
    rng = np.random.default_rng(seed)
    channels = shape[-1 if last else 1]
    x = rng.standard_normal(shape) + mean
    return [a.astype(numpy_dtype(dtype)) for a in (x, rng.standard_normal(channels), rng.standard_normal(channels))]


def assert_agrees(given: list[Any], *, tactic: int | None = None, seed: int = 1, **attributes: Any) -> None:
    call = OP.example(given[0].shape, given[0].dtype.name, **attributes)
    assert_close(run_operator(OP, call, *given, tactic=tactic, seed=seed), OP.reference(call, *given))


def test_the_reference_is_pytorchs_group_norm_and_silu() -> None:
    torch = pytest.importorskip("torch")
    x, weight, bias = arrays((2, 12, 5, 3), "float32", 0)
    tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
    want = torch.nn.functional.silu(torch.nn.functional.group_norm(tensors[0], 4, *tensors[1:], eps=1e-3))
    assert_close(OP.run_reference(x, weight, bias, groups=4, epsilon=1e-3), [want.numpy()])
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = OP.run_reference(last, weight, bias, groups=4, epsilon=1e-3, channels_last=1)
    assert_close(got, [np.ascontiguousarray(np.moveaxis(want.numpy(), 1, -1))])


@pytest.mark.parametrize(
    ("shape", "dtype", "groups", "last"),
    [((2, 6, 9, 8), "float16", 3, 0), ((1, 4, 33, 125), "float32", 2, 0), ((1, 9, 11, 40), "float16", 4, 1)],
)
def test_a_tactic_of_each_kind_gives_the_same_image(shape: tuple[int, ...], dtype: str, groups: int, last: int) -> None:
    given = arrays(shape, dtype, 1, last=last)
    tactics = OP.tactics(OP.example(shape, dtype, groups=groups, channels_last=last), 87)
    assert {tactic % 32 for tactic in tactics} == {0, 1, 2, 4, 8}
    for tactic in (tactics[0], *tactics[-4::2], 520):
        assert_agrees(given, tactic=tactic, seed=tactic, groups=groups, channels_last=last)


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 3),
    share=st.sampled_from([1, 2, 3, 4, 5]),
    groups=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 9),
    width=st.sampled_from([1, 2, 3, 4, 8]),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_channels_first(
    images: int, share: int, groups: int, height: int, width: int, dtype: str, seed: int
) -> None:
    given = arrays((images, share * groups, height, width), dtype, seed, mean=seed % 7)
    assert_agrees(given, tactic=(256, 514)[seed % 2], seed=seed, groups=groups)


@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.sampled_from([(6, 2), (40, 4), (24, 3), (7, 7), (16, 1)]),
    pixels=st.integers(1, 80),
    seed=st.integers(0, 2**16),
)
def test_any_shape_channels_last(images: int, channels: tuple[int, int], pixels: int, seed: int) -> None:
    given = arrays((images, pixels, channels[0]), "float16", seed, last=1)
    assert_agrees(given, tactic=514, seed=seed, groups=channels[1], channels_last=1)


@pytest.mark.parametrize("tactic", [1024, 516])
def test_a_mean_far_from_zero_does_not_cancel(tactic: int) -> None:
    assert_agrees(arrays((1, 4, 16, 16), "float32", 2, mean=1000.0), tactic=tactic, groups=2, epsilon=1e-6)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("tactic", [256, 514])
def test_nan_and_infinity_stay_in_their_groups(tactic: int, last: int) -> None:
    given = arrays((2, 8, 6, 8), "float16", 3, last=last)
    given[0][0, 0, 0, 0], given[0][1, 5, 2, 7] = np.nan, np.inf
    assert_agrees(given, tactic=tactic, groups=4, channels_last=last)
    (y,) = OP.run_reference(*given, groups=4, channels_last=last)
    assert np.isnan(y).sum() == 2 * y[0].size // 4


def test_large_values_neither_overflow_nor_vanish() -> None:
    x, weight, bias = arrays((1, 2, 4, 4), "float32", 4)
    weight[:], bias[:] = 1.0, (120.0, -120.0)
    assert_agrees([x, weight, bias], groups=2)
    (y,) = OP.run_reference(x, weight, bias, groups=2)
    assert (y[0, 0] > 100).all()
    assert (np.abs(y[0, 1]) < 1e-30).all()


@pytest.mark.parametrize(
    ("shape", "row", "attributes", "said"),
    [
        ((2, 8, 4, 4), 8, {}, "attribute 'groups' is missing"),
        ((2, 8, 4, 4), 8, {"groups": 3}, "8 channels do not divide into 3 groups"),
        ((2, 8, 4, 4), 8, {"groups": 0}, "'groups' is 0; it must be at least 1"),
        ((2, 8, 4, 4), 8, {"groups": 2.5}, "'groups' is 2.5, not an integer"),
        ((2, 8, 4, 4), 4, {"groups": 2}, "'weight' has 4 elements for 8 channels"),
        ((2, 8, 4, 4), 8, {"groups": 2, "channels_last": 1}, "'weight' has 8 elements for 4 channels"),
        ((2, 8), 8, {"groups": 2}, "input 'x' has 2 dimensions"),
        ((2, 8, 0), 8, {"groups": 2}, "a group without elements has no mean"),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    shape: tuple[int, ...], row: int, attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedCallError, match=f"group_norm_silu: .*{said}"):
        OP.call(TensorType("float16", shape), *[TensorType("float16", (row,))] * 2, **attributes)


def test_groups_too_wide_for_a_block_are_left_to_the_function_body() -> None:
    with pytest.raises(UnsupportedCallError, match="1024 are possible. The node runs through its function body"):
        OP.tactics(OP.example((1, 4, 4, 1025), "float32", groups=1, channels_last=1), 87)


def test_batch_and_pixels_may_be_free() -> None:
    x = TensorType("float16", (Size(index=0, axis=0), 320, Size(index=0, axis=2), Size(index=0, axis=3)))
    row = TensorType("float16", (320,))
    call = OP.call(x, row, row, groups=32)
    assert all(tactic % 32 for tactic in OP.tactics(call, 87)), "groups of an unknown size are not kept in registers"
    plan = OP.plan(call, tactic=514, sm=87)
    shapes = [(3, 320, 20, 30), (320,), (320,)]
    assert plan.scalars_for(shapes) == (320, 10, 600)
    assert plan.grid_for(shapes) == (3 * 32 * 2, 1, 1)
    assert plan.constants["VEC"] == 1
