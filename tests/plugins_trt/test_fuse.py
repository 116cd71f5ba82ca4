from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.quantize.fp16 import half_model
from edgekit.runtime.ort import OrtSession
from plugins_trt.fuse import fused
from plugins_trt.nodes import with_plugins
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close

helper = onnx.helper
SHAPE = ("batch", 12, 8)


def model_of_nodes(
    nodes: list[Any], weights: dict[str, np.ndarray], *, outputs: int = 1, opset: int = 18, **shapes: Any
) -> Any:
    """A model of x and r (of SHAPE unless `shapes` says otherwise) to y, y1, …"""
    value = helper.make_tensor_value_info
    inputs = [value(name, 1, shapes.get(name, SHAPE)) for name in ("x", "r")]
    names = ["y", "y1"][:outputs]
    rank = len(shapes.get("x", SHAPE))
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    results = [value(name, 1, [f"{name}{i}" for i in range(rank)]) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def row(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def norm_nodes(**attributes: Any) -> list[Any]:
    return [
        helper.make_node("Add", ["x", "r"], ["s"], name="add"),
        helper.make_node("LayerNormalization", ["s", "w", "b"], ["y"], name="norm", **attributes),
    ]


def assert_fused(model: Any, expected: list[str], **shapes: tuple[int, ...]) -> Any:
    """Fuse, compare both models on random inputs, and compare the operators found."""
    made, fusions = fused(model, operators().values())
    assert [fusion.operator for fusion in fusions] == expected
    onnx.checker.check_model(made, full_check=True)
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(shapes.get(name, (3, 12, 8))).astype(np.float32) for name in ("x", "r")}
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.SerializeToString()) as after:
        assert_close(list(after.run(feed).values()), list(before.run(feed).values()), relative=1e-5)
    return made


def test_an_add_and_a_layer_norm() -> None:
    made = assert_fused(model_of_nodes(norm_nodes(epsilon=1e-3), {"w": row(0), "b": row(1)}), ["layer_norm_residual"])
    (node,) = made.graph.node
    assert node.name == "norm"
    assert list(node.input) == ["x", "r", "w", "b"]
    assert with_plugins(made, operators(), sm=87).used[0].operator == "layer_norm_residual"


def test_a_sum_that_is_used_elsewhere_is_an_output() -> None:
    last = helper.make_node("Mul", ["s", "y0"], ["y"])
    nodes = [*norm_nodes(), last]
    nodes[1].output[0] = "y0"
    made = assert_fused(model_of_nodes(nodes, {"w": row(0), "b": row(1)}), ["layer_norm_residual_sum"])
    assert [node.op_type for node in made.graph.node] == ["layer_norm_residual_sum", "Mul"]


def test_a_sum_that_the_graph_gives_is_an_output() -> None:
    nodes = norm_nodes()
    nodes[0].output[0] = nodes[1].input[0] = "y1"
    assert_fused(model_of_nodes(nodes, {"w": row(0), "b": row(1)}, outputs=2), ["layer_norm_residual_sum"])


def test_a_layer_norm_without_bias_gets_zeros() -> None:
    nodes = norm_nodes()
    del nodes[1].input[2]
    assert_fused(model_of_nodes(nodes, {"w": row(0)}), ["layer_norm_residual"])


@pytest.mark.parametrize("why", ["another axis", "a broadcast", "a negative epsilon", "an old operator set"])
def test_what_is_not_the_same_stays(why: str) -> None:
    attributes: dict[str, Any] = {"another axis": {"axis": 1}, "a negative epsilon": {"epsilon": -1e-9}}.get(why, {})
    weights = {"w": row(0, 96).reshape(12, 8), "b": row(1, 96).reshape(12, 8)} if why == "another axis" else {}
    shapes = {"r": (1, 1, 8)} if why == "a broadcast" else {}
    nodes = norm_nodes(**attributes)
    opset = 17 if why == "an old operator set" else 18
    model = model_of_nodes(nodes, weights or {"w": row(0), "b": row(1)}, opset=opset, **shapes)
    made, fusions = fused(model, operators().values())
    assert not fusions
    assert made == model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [18, 21])
def test_pytorchs_group_norm_and_silu(opset: int, half: bool) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.GroupNorm(4, 12, eps=1e-4)
            torch.nn.init.normal_(self.norm.weight)
            torch.nn.init.normal_(self.norm.bias)

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.silu(self.norm(x * 2)) + 1

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        options = {"dynamo": True, "opset_version": opset, "verbose": False, "dynamic_shapes": ({0: batch},)}
        model = torch.onnx.export(Net().eval(), (torch.randn(2, 12, 6, 5),), **options).model_proto
    model = half_model(model) if half else model
    made, fusions = fused(model, operators().values())
    assert [fusion.operator for fusion in fusions] == ["group_norm_silu"]
    kinds = {node.op_type for node in made.graph.node}
    assert kinds <= {"Mul", "Cast", "group_norm_silu", "Add"}, "nothing of it is left over"
    assert with_plugins(made, operators(), sm=87).used[0].operator == "group_norm_silu"
    feed = {"x": np.random.default_rng(0).standard_normal((3, 12, 6, 5)).astype(np.float32)}
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.SerializeToString()) as after:
        want = list(before.run(feed).values())
        assert_close(list(after.run(feed).values()), want, relative=4e-3 if half else 1e-5)


def test_a_group_norm_whose_value_is_used_elsewhere_stays() -> None:
    nodes = [
        helper.make_node("GroupNormalization", ["x", "w", "b"], ["n"], num_groups=3, epsilon=1e-3),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["m"]),
        helper.make_node("Add", ["m", "n"], ["y"]),
    ]
    model = model_of_nodes(nodes, {"w": row(0, 12), "b": row(1, 12)}, opset=21)
    assert fused(model, operators().values())[1] == ()
    nodes[3].input[1] = "r"
    made, fusions = fused(model_of_nodes(nodes, {"w": row(0, 12), "b": row(1, 12)}, opset=21), operators().values())
    assert [fusion.operator for fusion in fusions] == ["group_norm_silu"]
    assert [node.op_type for node in made.graph.node] == ["group_norm_silu", "Add"]


def test_what_was_idle_before_is_not_touched() -> None:
    model = model_of_nodes(norm_nodes(), {"w": row(0), "b": row(1), "idle": row(2)})
    made, _ = fused(model, operators().values())
    assert "idle" in {weight.name for weight in made.graph.initializer}
