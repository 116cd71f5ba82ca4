from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.graphs import raised_to
from edgekit.quantize.fp16 import BF16, FP16, Half, half_model, raised_for
from edgekit.quantize.half_plugins import half_ends
from edgekit.quantize.prepare import prepared
from edgekit.runtime.ort import OrtSession
from plugins_trt.body import model_of
from plugins_trt.nodes import with_plugins
from plugins_trt.operator import Call
from plugins_trt.registry import operator, operators
from tests.plugins_trt.checks import assert_close


def model_in_float(name: str) -> tuple[Call, Any]:
    """A model of one node whose floats are all FP32, from the first example that is so."""
    op = operator(name)
    call = next(c for c in op.small_examples() if {t.dtype for t in c.inputs} <= {"float32", "int64", "int32"})
    return call, model_of(op, call)


def run(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    with OrtSession(model.SerializeToString()) as session:
        return list(session.run(feed).values())


@pytest.mark.parametrize("kind", [FP16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", ["layer_norm_residual_sum", "lstm", "decode_nms", "roi_align"])
def test_a_node_of_the_plugins_is_16_bits_where_the_model_is(name: str, kind: Half) -> None:
    call, model = model_in_float(name)
    made = half_model(prepared(raised_for(model, kind)), kind=kind)
    (node,) = [n for n in made.graph.node if n.domain == "edgekit"]
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(made).graph.value_info}
    ends = half_ends(name, kind.dtype)
    if ends is None:
        assert name in ("decode_nms", "roi_align"), "which have no BF16"
        assert kind is BF16
        assert types.get(node.output[0]) is None, "the graph's own output, as it was"
        return
    taken = [i for i, given in enumerate(node.input) if types.get(given) == kind.onnx]
    assert set(taken) == ends[0]
    given_back = [i for i, value in enumerate(node.output) if types.get(value) == kind.onnx]
    assert set(given_back) == ends[1]
    if kind is FP16:
        op = operator(name)
        feed = {port.name: array for port, array in zip(op.inputs, op.sample(call))}
        if name != "decode_nms":  # where rounding a box may change what is kept
            assert_close(run(made, feed), run(model, feed), relative=2e-2)
        assert with_plugins(made, operators(), sm=87).used[0].inputs.startswith("float16")


def test_which_ends_are_16_bits() -> None:
    assert half_ends("layer_norm_residual", "float16") == ({0, 1, 2, 3}, {0})
    assert half_ends("layer_norm_residual_int8", "float16") == ({0, 1, 2, 3}, set())
    assert half_ends("decode_nms", "float16") == ({0, 1}, set()), "boxes come out in FP32"
    assert half_ends("roi_align", "float16") == ({0}, {0}), "regions are in pixels, which FP16 does not hold"
    assert half_ends("letterbox_normalize", "float16") is None, "it takes bytes"
    assert half_ends("another", "float16") is None


def test_a_later_operator_set_keeps_the_functions() -> None:
    call, model = model_in_float("layer_norm_residual")
    made = raised_to(model, 21)
    assert {o.domain: o.version for o in made.opset_import} == {"": 21, "edgekit": 1}
    assert [(f.name, f.opset_import[0].version) for f in made.functions] == [("layer_norm_residual", 21)]
    op = operator("layer_norm_residual")
    feed = {port.name: array for port, array in zip(op.inputs, op.sample(call))}
    assert_close(run(made, feed), run(model, feed))


def test_functions_of_others_are_not_taken_for_ours() -> None:
    _, model = model_in_float("layer_norm_residual")
    model.functions[0].domain = model.graph.node[0].domain = "acme"
    with pytest.raises(ValueError, match="acme::layer_norm_residual"):
        raised_to(model, 21)
    assert raised_for(model, BF16) == model
