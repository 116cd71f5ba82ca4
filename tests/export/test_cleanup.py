from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from edgekit.export.cleanup import clean, upgraded
from edgekit.graphs import model_specs, opset_of
from tests.export.common import model, operators, run

X = np.array([[1.0, -2.0, 3.0]], np.float32)


def test_dropout_identity_and_dead_nodes_go() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b", "mask"]),
        helper.make_node("Abs", ["b"], ["c"]),
        helper.make_node("Relu", ["b"], ["unused"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    proto = model(nodes, {"x": (1, 3)}, {"y": (1, 3)}, {"stray": X})
    done = clean(proto)
    assert operators(proto) == ["Abs"]
    assert done == {"Dropout nodes": 1, "Identity nodes": 3, "dead nodes": 1}
    assert not proto.graph.initializer
    np.testing.assert_array_equal(run(proto, x=X)["y"], np.abs(X))


def test_a_dropout_whose_mask_is_read_or_that_trains_stays() -> None:
    nodes = [
        helper.make_node("Dropout", ["x", "", "on"], ["y"]),
        helper.make_node("Dropout", ["x"], ["z", "mask"]),
        helper.make_node("Not", ["mask"], ["m"]),
    ]
    proto = model(nodes, {"x": (1, 3)}, {"y": (1, 3), "z": (1, 3)}, {"on": np.array(True)})
    proto.graph.output.append(helper.make_tensor_value_info("m", TensorProto.BOOL, (1, 3)))
    clean(proto)
    assert operators(proto) == ["Dropout", "Dropout", "Not"]


def test_names_of_inputs_and_outputs_survive_when_they_meet() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Abs", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
    ]
    proto = model(nodes, {"x": (1, 3)}, {"same": (1, 3), "y": (1, 3), "z": (1, 3), "k": (2,)})
    clean(proto)
    out = run(proto, x=X)
    np.testing.assert_array_equal(out["same"], X)
    np.testing.assert_array_equal(out["y"], np.abs(X))
    np.testing.assert_array_equal(out["z"], np.abs(X))
    np.testing.assert_array_equal(out["k"], [1, 2])


def test_what_control_flow_reads_from_outside_is_kept_and_renamed() -> None:
    then = helper.make_graph([helper.make_node("Neg", ["a"], ["t"])], "then", [], [_value("t")])
    other = helper.make_graph([helper.make_node("Identity", ["w"], ["e"])], "else", [], [_value("e")])
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, {"x": (1, 3)}, {"y": (1, 3)}, {"w": 7 * X, "zero": np.float32(0).reshape(())})
    clean(proto)
    assert operators(proto) == ["ReduceSum", "Greater", "If"]
    np.testing.assert_array_equal(run(proto, x=X)["y"], -X)
    np.testing.assert_array_equal(run(proto, x=-X)["y"], 7 * X)


def test_initializers_listed_as_inputs_are_inputs_no_more() -> None:
    proto = model([helper.make_node("Mul", ["x", "w"], ["y"])], {"x": (1, 3), "w": (1, 3)}, {"y": (1, 3)}, {"w": X})
    proto.ir_version = 3
    assert clean(proto) == {"initializers listed as inputs": 1}
    assert [s.name for s in model_specs(proto)[0]] == ["x"]
    np.testing.assert_array_equal(run(proto, x=X)["y"], X * X)


def test_upgrade_raises_old_opsets_and_leaves_new_ones() -> None:
    old = model([helper.make_node("Abs", ["x"], ["y"])], {"x": (1, 3)}, {"y": (1, 3)}, opset=7)
    newer = upgraded(old, 18)
    assert newer is not None
    assert opset_of(newer) == 18
    assert opset_of(old) == 7
    assert upgraded(newer, 13) is newer


def _value(name: str) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3))
