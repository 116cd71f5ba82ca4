from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.graphs import all_nodes, load_model
from edgekit.quantize.fp16 import BF16, half_model
from edgekit.quantize.prepare import prepared
from edgekit.runtime.ort import OrtSession
from tests.data import data_path
from tests.quantize.nets import random

node = helper.make_node


def value(name: str, shape: list[object], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branching() -> onnx.ModelProto:
    """if flag: relu(x @ w) @ w else: (if flag2: x * h else: h), where h is made outside."""
    inner_then = helper.make_graph([node("Mul", ["x", "h"], ["i1"], name="mul")], "t", [], [value("i1", ["batch", 8])])
    inner_else = helper.make_graph([node("Identity", ["e"], ["i2"])], "e", [], [value("i2", ["batch", 8])])
    then = helper.make_graph(
        [
            node("MatMul", ["x", "w"], ["a"], name="first"),
            node("Relu", ["a"], ["b"], name="relu"),
            node("MatMul", ["b", "w"], ["c"], name="second"),
        ],
        "then",
        [],
        [value("c", ["batch", 8])],
    )
    otherwise = helper.make_graph(
        [
            node("Sigmoid", ["h"], ["e"], name="sigmoid"),
            node("If", ["flag2"], ["d"], then_branch=inner_then, else_branch=inner_else, name="inner"),
        ],
        "else",
        [],
        [value("d", ["batch", 8])],
    )
    graph = helper.make_graph(
        [
            node("Tanh", ["x"], ["h"], name="tanh"),
            node("If", ["flag"], ["y"], then_branch=then, else_branch=otherwise, name="outer"),
        ],
        "g",
        [value("x", ["batch", 8]), value("flag", [], TensorProto.BOOL), value("flag2", [], TensorProto.BOOL)],
        [value("y", ["batch", 8])],
        [numpy_helper.from_array(random(8, 8, scale=0.3), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("flag2", [True, False])
def test_every_branch_gives_what_it_gave(flag: bool, flag2: bool) -> None:
    model = branching()
    made = half_model(prepared(model))
    onnx.checker.check_model(made, full_check=True)
    feed = {"x": random(3, 8), "flag": np.asarray(flag), "flag2": np.asarray(flag2)}
    with (
        OrtSession(model.SerializeToString(), threads=1) as one,
        OrtSession(made.SerializeToString(), threads=1) as two,
    ):
        want, got = one.run(feed)["y"], two.run(feed)["y"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_products_in_branches_read_and_write_16_bits(kind: str) -> None:
    made = half_model(prepared(branching()), kind=BF16) if kind == "bf16" else half_model(prepared(branching()))
    onnx.checker.check_model(made, full_check=True)
    types = {}
    for n in all_nodes(made):
        if n.op_type == "Cast":
            types[n.output[0]] = n.attribute[0].i
    products = [n for n in all_nodes(made) if n.op_type == "MatMul"]
    wanted = TensorProto.BFLOAT16 if kind == "bf16" else TensorProto.FLOAT16
    assert len(products) == 2
    assert all(types[products[0].input[i]] == wanted for i in (0, 1))
    assert types[products[1].input[1]] == wanted  # the weight is converted once for both
    assert products[0].input[1] == products[1].input[1]


def test_nodes_that_are_to_stay_float_stay() -> None:
    made = half_model(prepared(branching()), floats={"first", "second", "relu"})
    then = next(a.g for n in made.graph.node if n.op_type == "If" for a in n.attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node] == ["MatMul", "Relu", "MatMul"]


def test_the_real_speech_model_runs_on_any_length_in_half_precision() -> None:
    model = prepared(load_model(data_path("audio_silero_vad/silero_vad_16k_op15.onnx")))
    made = half_model(model)
    rng = np.random.default_rng(0)
    with (
        OrtSession(model.SerializeToString(), threads=1) as one,
        OrtSession(made.SerializeToString(), threads=1) as two,
    ):
        for length in (576, 512):
            feed = {
                "input": (0.1 * rng.standard_normal((2, length))).astype(np.float32),
                "state": np.zeros((2, 2, 128), np.float32),
                "sr": np.asarray(16000),
            }
            want, got = one.run(feed), two.run(feed)
            for name in want:
                np.testing.assert_allclose(got[name], want[name], atol=5e-2)
