from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engine.conditions import conditions_resolved
from edgekit.engine.profiles import parse_shapes
from edgekit.runtime.ort import OrtSession

node = helper.make_node
BATCH = [parse_shapes("x:1x4..2x4..8x4")]


def value(name: str, dims: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def model_with(condition: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto] | None = None) -> onnx.ModelProto:
    """y = x + 1 if c else (2x if c else 3x): an If in an If; both branches use the same inner names."""
    deep = node(
        "If", ["c"], ["deep"], name="deep",
        then_branch=helper.make_graph([node("Mul", ["x", "two"], ["inner"])], "a", [], [value("inner")]),
        else_branch=helper.make_graph(
            [node("Mul", ["x", "w"], ["inner"])], "b", [], [value("inner")],
            [numpy_helper.from_array(np.float32(3), "w")],
        ),
    )  # fmt: skip
    outer = node(
        "If", ["c"], ["y"], name="outer",
        then_branch=helper.make_graph([node("Add", ["x", "one"], ["inner"])], "t", [], [value("inner")]),
        else_branch=helper.make_graph([deep], "e", [], [value("deep")]),
    )  # fmt: skip
    weights = {"one": np.float32(1), "two": np.float32(2), "four": np.int64(4), "axis": np.int64(1), "n": np.int64(5)}
    graph = helper.make_graph(
        [*condition, outer],
        "g",
        [value("x", ["batch", 4]), *(inputs or [])],
        [value("y", ["batch", 4])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def width_is(number: str) -> list[onnx.NodeProto]:
    """c = whether the second dimension of x is `number`."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "axis"], ["width"]),
        node("Equal", ["width", number], ["c"]),
    ]


@pytest.mark.parametrize(("number", "expected", "count"), [("four", 2.0, 1), ("n", 3.0, 2)])
def test_conditions_on_shapes_are_put_in_place(number: str, expected: float, count: int) -> None:
    model = model_with(width_is(number))
    before = model.SerializeToString()
    out, resolved = conditions_resolved(model, BATCH)
    assert resolved == count  # the nested one too
    assert model.SerializeToString() == before
    assert not any(n.op_type == "If" for n in out.graph.node)
    onnx.checker.check_model(out)
    ones = np.ones((3, 4), np.float32)
    with OrtSession(out.SerializeToString()) as new, OrtSession(before) as old:
        assert np.array_equal(new.run({"x": ones})["y"], old.run({"x": ones})["y"])
        assert new.run({"x": ones})["y"][0, 0] == expected


def test_a_condition_on_values_or_on_a_free_size_stays() -> None:
    on_values = model_with(
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "one"], ["c"])],
    )
    assert conditions_resolved(on_values, BATCH) == (on_values, 0)
    on_batch = model_with(
        [
            node("Shape", ["x"], ["shape"]),
            node("ReduceMax", ["shape"], ["most"], keepdims=0),  # 4, 4, then 8
            node("Equal", ["most", "four"], ["c"]),
        ]
    )
    assert conditions_resolved(on_batch, BATCH) == (on_batch, 0)
    fixed, count = conditions_resolved(on_batch, [parse_shapes("x:2x4")])
    assert count == 1
    assert not any(n.op_type == "If" for n in fixed.graph.node)


def test_a_model_without_conditions_is_the_same_object() -> None:
    graph = helper.make_graph([node("Relu", ["x"], ["y"])], "g", [value("x", [4])], [value("y", [4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert conditions_resolved(model, [])[0] is model
