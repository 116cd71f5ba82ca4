from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.layer_norm_residual import MAX_COLUMNS, LayerNormResidual
from plugins_trt.operator import TensorType, numpy_dtype
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

PLAIN = LayerNormResidual(keep_sum=False, int8=False)
WITH_SUM = LayerNormResidual(keep_sum=True, int8=False)
INT8 = LayerNormResidual(keep_sum=True, int8=True)


def arrays(shape: tuple[int, ...], dtype: str, seed: int, *, mean: float = 0.0, deviation: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(seed)
    shapes = (shape, shape, shape[-1:], shape[-1:])
    return [(rng.standard_normal(s) * deviation + mean * (len(s) > 1)).astype(numpy_dtype(dtype)) for s in shapes]


def assert_agrees(
    op: LayerNormResidual, given: list[Any], *, tactic: int | None = None, seed: int = 1, **attributes: Any
) -> None:
    call = op.example(given[0].shape, given[0].dtype.name, **attributes)
    assert_close(run_operator(op, call, *given, tactic=tactic, seed=seed), op.reference(call, *given))


def test_the_reference_is_pytorchs_layer_norm_and_rms_norm() -> None:
    torch = pytest.importorskip("torch")
    x, residual, weight, bias = arrays((4, 6, 33), "float32", 0)
    both = torch.from_numpy(x + residual)
    tensors = torch.from_numpy(weight), torch.from_numpy(bias)
    layer = torch.nn.functional.layer_norm(both, (33,), *tensors, eps=1e-3)
    rms = torch.nn.functional.rms_norm(both, (33,), tensors[0], eps=1e-3)
    y, total = WITH_SUM.run_reference(x, residual, weight, bias, epsilon=1e-3)
    assert_close([y, total], [layer.numpy(), both.numpy()])
    (y,) = PLAIN.run_reference(x, residual, weight, np.zeros_like(bias), epsilon=1e-3, rms=1)
    assert_close([y], [rms.numpy()])


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (300, 64), (3, 1024), (2, 1032), (1, 8192)])
def test_every_tactic_gives_the_same_rows(shape: tuple[int, int]) -> None:
    given = arrays(shape, "float16", 1)
    for tactic in WITH_SUM.tactics(WITH_SUM.example(shape, "float16"), 87):
        assert_agrees(WITH_SUM, given, tactic=tactic, seed=tactic)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.sampled_from([1, 2, 31, 32, 40, 48, 56, 64]),
    dtype=st.sampled_from(["float16", "float32"]),
    rms=st.integers(0, 1),
    mean=st.sampled_from([0.0, 3.0, -40.0]),
    seed=st.integers(0, 2**16),
)
def test_any_number_of_rows(rows: int, columns: int, dtype: str, rms: int, mean: float, seed: int) -> None:
    assert_agrees(PLAIN, arrays((rows, columns), dtype, seed, mean=mean), rms=rms, seed=seed)


def test_a_mean_far_from_zero_does_not_cancel() -> None:
    given = arrays((2, 768), "float32", 3, mean=1000.0, deviation=0.1)
    call = PLAIN.example((2, 768), "float32", epsilon=1e-6)
    # The sum itself is rounded at 2000: to a thousandth of the deviation. E[x^2] - E[x]^2 would lose all of it.
    assert_close(run_operator(PLAIN, call, *given), PLAIN.reference(call, *given), relative=2e-3)


def test_nan_and_infinity_stay_in_their_rows() -> None:
    x, residual, weight, bias = arrays((6, 40), "float16", 4)
    x[1, 3], x[2, 7], residual[4, 0] = np.nan, np.inf, -np.inf
    assert_agrees(WITH_SUM, [x, residual, weight, bias])
    y, total = WITH_SUM.run_reference(x, residual, weight, bias)
    assert np.isnan(y[[1, 2, 4]]).all()
    assert np.isfinite(y[[0, 3, 5]]).all()
    assert np.isinf(total).sum() == 2


def test_a_constant_row_is_the_bias() -> None:
    x = np.full((2, 64), 3.0, np.float16)
    _, residual, weight, bias = arrays((2, 64), "float16", 5)
    given = [x, np.zeros_like(residual), weight, bias]
    assert_agrees(PLAIN, given)
    assert_close(PLAIN.run_reference(*given), [np.broadcast_to(bias, (2, 64))])


def test_int8_is_rounded_saturated_and_zero_for_nan() -> None:
    x, residual, weight, bias = arrays((4, 48), "float16", 6)
    weight[0], x[2, 5] = 200.0, np.nan
    assert_agrees(INT8, [x, residual, weight, bias], scale=0.02)
    y, _ = INT8.run_reference(x, residual, weight, bias, scale=0.02)
    assert y.dtype == np.int8
    assert set(np.abs(y[[0, 1, 3], 0].astype(int))) <= {127, 128}
    assert not y[2].any()


@pytest.mark.parametrize(
    ("shapes", "dtypes", "attributes", "said"),
    [
        (((2, 8), (2, 8), (8,)), "f4", {}, "got 3 inputs, it takes 4: x, residual, weight, bias"),
        (((2, 8), (2, 9), (8,), (8,)), "f4", {}, r"'x' is float32\[2, 8\] and 'residual' float32\[2, 9\]"),
        (((2, 8), (8,), (8,), (8,)), "f4", {}, "they have one shape"),
        (((2, 8), (2, 8), (9,), (8,)), "f4", {}, "'weight' has 9 elements for rows of 8"),
        (((2, 8), (2, 8), (8, 1), (8,)), "f4", {}, "input 'weight' has 2 dimensions"),
        (((), (), (1,), (1,)), "f4", {}, "input 'x' is a scalar"),
        (((2, 0), (2, 0), (0,), (0,)), "f4", {}, "nothing to normalise over"),
        (((2, -8), (2, -8), (8,), (8,)), "f4", {}, "negative size"),
        (((2, 8), (2, 8), (8,), (8,)), "i4", {}, "input 'x' is int32; it takes float32 or float16 or bfloat16"),
        (((2, 8), (2, 8), (8,), (8,)), "f4", {"epsilon": -1}, "'epsilon' is -1.0; it must be at least 0"),
        (((2, 8), (2, 8), (8,), (8,)), "f4", {"epsilon": "small"}, "'epsilon' is 'small', not a number"),
        (((2, 8), (2, 8), (8,), (8,)), "f4", {"rms": 2}, "'rms' is 2; it can be 0, 1"),
        (((2, 8), (2, 8), (8,), (8,)), "f4", {"axis": 1}, "no attribute 'axis'. Its attributes: epsilon, rms"),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    shapes: tuple[tuple[int, ...], ...], dtypes: str, attributes: dict[str, Any], said: str
) -> None:
    types = [TensorType(np.dtype(dtypes).name, shape) for shape in shapes]
    with pytest.raises(UnsupportedCallError, match=f"layer_norm_residual: .*{said}"):
        PLAIN.call(*types, **attributes)


def test_the_other_inputs_have_the_dtype_of_x() -> None:
    x, row = TensorType("float16", (2, 8)), TensorType("float16", (8,))
    with pytest.raises(UnsupportedCallError, match="input 'residual' is float32; it takes float16, as 'x'"):
        PLAIN.call(x, TensorType("float32", (2, 8)), row, row)


def test_int8_needs_its_scale() -> None:
    with pytest.raises(UnsupportedCallError, match="'scale' is missing"):
        INT8.example((2, 8), "float16")
    with pytest.raises(UnsupportedCallError, match="'scale' is 0.0; it must be at least"):
        INT8.example((2, 8), "float16", scale=0.0)


def test_rows_that_are_too_long_or_free_are_left_to_the_function_body() -> None:
    with pytest.raises(UnsupportedCallError, match=f"{MAX_COLUMNS} do. The node runs through its function body"):
        PLAIN.tactics(PLAIN.example((1, MAX_COLUMNS + 8), "float16"), 87)
    free = TensorType("float16", (2, Size(index=0, axis=1)))
    row = TensorType("float16", (Size(index=2, axis=0),))
    with pytest.raises(UnsupportedCallError, match="the last dimension of 'x' must be known when the engine is built"):
        PLAIN.tactics(PLAIN.call(free, free, row, row), 87)


def test_the_batch_may_be_free() -> None:
    x, row = TensorType("float16", (Size(index=0, axis=0), 197, 768)), TensorType("float16", (768,))
    plan = PLAIN.plan(PLAIN.call(x, x, row, row), tactic=256, sm=87)
    shapes = [(5, 197, 768), (5, 197, 768), (768,), (768,)]
    assert plan.scalars_for(shapes) == (5 * 197, 768)
    assert plan.grid_for(shapes) == (-(-5 * 197 // 8), 1, 1)
    assert plan.grid_for([(0, 197, 768)] * 4) == (1, 1, 1)
