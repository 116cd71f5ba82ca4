from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.quantize.calibrate import histograms
from edgekit.quantize.fp16 import half_model
from edgekit.quantize.half_pairs import with_half_pairs
from edgekit.quantize.lint import lint_trt
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import range_of
from edgekit.quantize.search import observed
from edgekit.quantize.trt import trt_int8
from edgekit.quantize.weights import representable
from tests.quantize.nets import images, mlp_block, random
from tests.quantize.test_qdq import data_of
from tests.quantize.test_search import wide_net


def with_casts(model: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    ready, data = prepared(model), data_of(x)
    seen = histograms(ready, observed(ready), data)
    return half_model(trt_int8(ready, {n: range_of(h, "minmax", symmetric=True) for n, h in seen.items()}))


@pytest.mark.parametrize(("model", "x"), [(wide_net(), images(8)), (mlp_block(), random(4, 6, 32))])
def test_no_cast_stands_beside_a_pair_and_values_stay(model: onnx.ModelProto, x: np.ndarray) -> None:
    before = with_casts(model, x)
    made = with_half_pairs(before)
    onnx.checker.check_model(made, full_check=True)
    assert lint_trt(made) == []
    makers = {o: n.op_type for n in made.graph.node for o in n.output}
    products = [n for n in made.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    quantized = [n for n in products if makers.get(n.input[1]) == "DequantizeLinear"]
    assert quantized
    assert all(makers[n.input[0]] == "DequantizeLinear" for n in quantized)
    casts = [sum(n.op_type == "Cast" for n in m.graph.node) for m in (before, made)]
    assert casts[1] <= 2 < casts[0]
    wanted, got = (outputs_of(m, data_of(x), literal=True) for m in (before, made))
    assert gap(wanted, got, classes=False).error < 1e-4, "a value between two steps may fall to the other one"


def test_a_scale_that_fp16_would_change_keeps_its_casts() -> None:
    before = with_casts(wide_net(), images(8))
    for tensor in before.graph.initializer:
        if tensor.name.endswith("_scale"):
            value = onnx.numpy_helper.to_array(tensor) * np.float32(1 + 2**-14)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    made = with_half_pairs(before)
    assert {t.data_type for t in made.graph.initializer if t.name.endswith("_scale")} == {onnx.TensorProto.FLOAT}
    assert [n.op_type for n in made.graph.node].count("Cast") == [n.op_type for n in before.graph.node].count("Cast")


@given(st.floats(2**-20, 2**16, width=32))
def test_scales_are_raised_to_what_fp16_has_and_by_little(scale: float) -> None:
    raised = representable(np.float32([scale]))
    assert raised[0] >= np.float32(scale)
    if scale > 1e-4 and scale <= 32768:
        assert raised[0] <= scale * (1 + 2**-9)
        assert raised.astype(np.float16).astype(np.float32) == raised


def test_scales_beyond_fp16_are_left_alone() -> None:
    tiny_and_huge = np.float32([1e-12, 1e9])
    assert (representable(tiny_and_huge) == tiny_and_huge).all()
