from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.runtime.ort import OrtSession
from plugins_trt.body import add_functions, node_of
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedTargetError
from plugins_trt.group_norm_silu import GroupNormSilu
from plugins_trt.layer_norm_residual import MAX_COLUMNS, LayerNormResidual
from plugins_trt.nodes import call_of, with_plugins
from plugins_trt.operator import TensorType
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close

NORM = LayerNormResidual(keep_sum=False, int8=False)


def two_norms(*, columns: int = 64, batch: str | int = "batch") -> Any:
    """x -> Relu -> norm of 64 columns -> Transpose -> norm of `columns`, a free batch."""
    helper = onnx.helper
    first = NORM.call(*[TensorType("float32", (2, columns, 64))] * 2, *[TensorType("float32", (64,))] * 2)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        node_of(NORM, first, ["a", "x", "w1", "b1"], ["n1"]),
        helper.make_node("Transpose", ["n1"], ["t"], perm=[0, 2, 1]),
        node_of(NORM, first, ["t", "t", "w2", "b2"], ["y"]),
    ]
    nodes[1].name, nodes[3].name = "short", "long"
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    weights = {"w1": 64, "b1": 64, "w2": columns, "b2": columns}
    graph = helper.make_graph(
        nodes,
        "norms",
        [value("x", 1, [batch, columns, 64])],
        [value("y", 1, [batch, 64, columns])],
        [onnx.numpy_helper.from_array(rng.standard_normal(n).astype(np.float32), name) for name, n in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return add_functions(model, tuple(operators().values()))


def test_nodes_become_plugins_and_lose_their_function() -> None:
    model = two_norms()
    made = with_plugins(model, operators(), sm=110)
    assert [(use.node, use.operator) for use in made.used] == [("short", NORM.name), ("long", NORM.name)]
    assert made.used[0].inputs.startswith("float32[input 0 axis 0, 64, 64], float32[input 1 axis 0, 64, 64]")
    assert made.digests == {"edgekit::layer_norm_residual": NORM.digest()}
    assert not made.refused
    assert not made.model.functions
    node = made.model.graph.node[1]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["plugin_namespace"] == b"edgekit"
    assert attributes["aot"] == 1
    assert attributes["epsilon"] == pytest.approx(1e-5)
    assert len(model.functions) == 1, "what is given is not changed"


def test_what_the_kernel_cannot_do_keeps_its_function_and_says_why() -> None:
    columns = MAX_COLUMNS + 8
    made = with_plugins(two_norms(columns=columns), operators(), sm=87)
    assert [use.node for use in made.used] == ["short"]
    (refusal,) = made.refused
    assert refusal.node == "long"
    assert f"rows of {columns} do not fit" in refusal.reason
    assert [f.name for f in made.model.functions] == ["layer_norm_residual_body"]
    assert [n.op_type for n in made.model.graph.node][-1] == "layer_norm_residual_body"


def test_a_model_whose_nodes_are_all_refused_still_runs() -> None:
    model = two_norms()
    op = NORM.name
    model.graph.node[1].attribute[0].f = -1.0  # an epsilon that the operator refuses; the function computes with it
    del model.graph.node[3:]
    model.graph.output[0].name = "n1"
    model.graph.output[0].type.tensor_type.shape.CopyFrom(model.graph.input[0].type.tensor_type.shape)
    made = with_plugins(model, operators(), sm=87)
    assert not made.used
    assert "'epsilon' is -1.0; it must be at least 0" in made.refused[0].reason
    onnx.checker.check_model(made.model, full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 64, 64)).astype(np.float32) * 9
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.model.SerializeToString()) as after:
        assert_close(list(after.run({"x": x}).values()), list(before.run({"x": x}).values()))
    assert made.refused[0].operator == op


def test_free_dimensions_and_lists_reach_the_call() -> None:
    op = GroupNormSilu()
    free = TensorType("float16", (Size(), 8, Size()))
    row = TensorType("float16", (8,))
    node = onnx.helper.make_node(op.name, ["x", "w", "b"], ["y"], domain="edgekit", groups=2, plugin_version="1")
    call = call_of(op, node, {"x": free, "w": row, "b": row})
    assert call.inputs[0].shape == (Size(index=0, axis=0), 8, Size(index=0, axis=2))
    assert call.attributes == {"groups": 2, "epsilon": 1e-5, "channels_last": 0}


def test_other_domains_and_unknown_operators_stay() -> None:
    model = two_norms()
    made = with_plugins(model, {}, sm=87)
    assert made.model == model
    assert not made.used
    assert not made.refused


def test_a_target_without_kernels_is_refused() -> None:
    with pytest.raises(UnsupportedTargetError, match="sm_72 is too old for the kernels"):
        with_plugins(two_norms(), operators(), sm=72)
