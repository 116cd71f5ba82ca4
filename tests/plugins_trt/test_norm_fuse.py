from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.quantize.fp16 import half_model
from edgekit.runtime.ort import OrtSession
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.fuse import Graph, fused
from plugins_trt.nodes import with_plugins
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close
from tests.plugins_trt.test_fuse import assert_fused, model_of_nodes, row

make = onnx.helper.make_node
SCALAR = {"two": np.float32(2), "eps": np.float32(1e-3), "last": np.array([-1])}


def rms_nodes(*, product: bool = False, division: bool = False) -> list[Any]:
    """Add, then RMSNorm written out, with the square as a power or product, and the root divided by or multiplied."""
    square = make("Mul", ["s", "s"], ["sq"]) if product else make("Pow", ["s", "two"], ["sq"])
    head = [make("Add", ["x", "r"], ["s"], name="add"), square, make("ReduceMean", ["sq", "last"], ["mean"])]
    head += [make("Add", ["eps", "mean"], ["me"]), make("Sqrt", ["me"], ["root"])]
    if division:
        return [*head, make("Div", ["s", "root"], ["n"]), make("Mul", ["n", "w"], ["y"], name="scale")]
    tail = [make("Reciprocal", ["root"], ["r1"]), make("Mul", ["r1", "s"], ["n"])]
    return [*head, *tail, make("Mul", ["w", "n"], ["y"], name="scale")]


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("division", [False, True])
def test_an_rms_norm_that_is_written_out(product: bool, division: bool) -> None:
    nodes = rms_nodes(product=product, division=division)
    made = assert_fused(model_of_nodes(nodes, {**SCALAR, "w": row(0)}), ["layer_norm_residual"])
    (node,) = made.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"epsilon": pytest.approx(1e-3), "rms": 1}


def test_a_layer_norm_that_is_written_out() -> None:
    nodes = [
        make("Add", ["x", "r"], ["s"], name="add"),
        make("ReduceMean", ["s", "last"], ["m"]),
        make("Sub", ["s", "m"], ["c"]),
        make("Pow", ["c", "two"], ["sq"]),
        make("ReduceMean", ["sq", "last"], ["v"]),
        make("Add", ["v", "eps"], ["ve"]),
        make("Sqrt", ["ve"], ["d"]),
        make("Div", ["c", "d"], ["n"]),
        make("Mul", ["n", "w"], ["k"]),
        make("Add", ["k", "b"], ["y0"]),
        make("Mul", ["y0", "s"], ["y"]),
    ]
    weights = {**SCALAR, "w": row(0), "b": row(1)}
    made = assert_fused(model_of_nodes(nodes, weights), ["layer_norm_residual_sum"])
    assert [node.op_type for node in made.graph.node] == ["layer_norm_residual_sum", "Mul"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in made.graph.node[0].attribute}
    assert attributes["rms"] == 0


def test_what_is_nearly_an_rms_norm_stays() -> None:
    for change in ("cube", "other axis", "square used elsewhere", "mean of another"):
        nodes, weights = rms_nodes(), {**SCALAR, "w": row(0)}
        if change == "cube":
            weights["two"] = np.float32(3)
        elif change == "other axis":
            weights["last"] = np.array([1])
        elif change == "square used elsewhere":
            nodes[-1].output[0] = "y0"
            nodes.append(make("Add", ["y0", "sq"], ["y"]))
        else:
            nodes[1].input[0] = "x"
        made, fusions = fused(model_of_nodes(nodes, weights), operators().values())
        assert not fusions, change
        assert len(made.graph.node) == len(nodes), change


def test_casts_around_a_norm_belong_to_it() -> None:
    """As mixed precision writes it: FP16 outside, the norm and its weights in FP32."""
    half = onnx.TensorProto.FLOAT16
    nodes = [
        make("Cast", ["x"], ["xh"], to=half),
        make("Cast", ["r"], ["rh"], to=half),
        make("Add", ["xh", "rh"], ["s"]),
        make("Cast", ["s"], ["s32"], to=1),
        make("LayerNormalization", ["s32", "w", "b"], ["n"]),
        make("Cast", ["n"], ["nh"], to=half),
        make("Mul", ["nh", "s"], ["m"]),
        make("Cast", ["m"], ["y"], to=1),
    ]
    model = model_of_nodes(nodes, {"w": row(0), "b": row(1)})
    made, fusions = fused(model, operators().values())
    assert [fusion.operator for fusion in fusions] == ["layer_norm_residual_sum"]
    assert [n.op_type for n in made.graph.node] == ["Cast", "Cast", "layer_norm_residual_sum", "Mul", "Cast"]
    feed = {name: np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float32) for name in ("x", "r")}
    with OrtSession(model.SerializeToString()) as before, OrtSession(made.SerializeToString()) as after:
        assert_close(list(after.run(feed).values()), list(before.run(feed).values()), relative=4e-3)


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("another axis", "it does not normalise over the last dimension alone"),
        ("other shapes", "x and r are not known to have one shape"),
        ("kernel", "no room in this test"),
    ],
)
def test_why_a_norm_stays_is_said(why: str, reason: str) -> None:
    def no_kernel(_operator: Any, _call: Any) -> None:
        raise UnsupportedCallError("no room in this test")

    norm = make("LayerNormalization", ["s", "w", "b"], ["y"], name="norm", axis=1 if why == "another axis" else -1)
    weights = {"w": row(0), "b": row(1)}
    if why == "another axis":
        weights = {"w": row(0, 96).reshape(12, 8), "b": row(1, 96).reshape(12, 8)}
    shapes = {"r": ("other", 12, 8)} if why == "other shapes" else {}
    model = model_of_nodes([make("Add", ["x", "r"], ["s"]), norm], weights, **shapes)
    graph = Graph(model, check=no_kernel if why == "kernel" else None)
    graph.fuse(operators().values())
    assert not graph.fusions
    (left,) = graph.left
    assert (left.operator, left.node) == ("layer_norm_residual", "norm")
    assert reason in left.reason


def test_the_weight_says_how_long_a_row_is() -> None:
    model = model_of_nodes(
        [make("Add", ["x", "r"], ["s"]), make("LayerNormalization", ["s", "w", "b"], ["y"])],
        {"w": row(0), "b": row(1)},
        x=("batch", 12, "columns"),
        r=("batch", 12, "columns"),
    )
    made = with_plugins(model, operators(), sm=87, fuse=True)
    assert [use.operator for use in made.used] == ["layer_norm_residual"]
    assert made.used[0].inputs.startswith("float32[input 0 axis 0, 12, 8], float32[input 1 axis 0, 12, 8]")


def test_a_bias_before_a_norm_is_no_residual() -> None:
    nodes = [make("Add", ["x", "w"], ["s"]), make("LayerNormalization", ["s", "w", "b"], ["y"])]
    graph = Graph(model_of_nodes(nodes, {"w": row(0), "b": row(1)}))
    graph.fuse(operators().values())
    assert (graph.fusions, graph.left) == ([], [])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "rms 18", "rms 23"])
def test_what_pytorch_exports(kind: str, half: bool) -> None:
    torch = pytest.importorskip("torch")

    class Rms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.RMSNorm(32, eps=1e-5)
            torch.nn.init.normal_(self.norm.weight)

        def forward(self, x: Any) -> Any:
            total = x + torch.tanh(x)
            return self.norm(total) * total

    torch.manual_seed(0)
    layer = {"d_model": 32, "nhead": 2, "dim_feedforward": 64, "batch_first": True}
    net = Rms() if kind != "encoder" else torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**layer), 2)
    options: dict[str, Any] = {"opset_version": int(kind.split()[-1]) if kind != "encoder" else 18, "verbose": False}
    options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            model = torch.onnx.export(net.eval(), (torch.randn(2, 5, 32),), dynamo=True, **options).model_proto
        finally:
            logging.disable(logging.NOTSET)
    model = half_model(model) if half else model
    made, fusions = fused(model, operators().values())
    assert [fusion.operator for fusion in fusions] == (
        ["layer_norm_residual"] * 4 if kind == "encoder" else ["layer_norm_residual_sum"]
    )
    assert "ReduceMean" not in {node.op_type for node in made.graph.node}
    assert not with_plugins(made, operators(), sm=110).refused
    name = model.graph.input[0].name
    feed = {name: np.random.default_rng(0).standard_normal((3, 5, 32)).astype(np.float32)}
    assert_close(outputs(made, feed), outputs(model, feed), relative=1e-2 if half else 1e-5)


def outputs(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    with OrtSession(model.SerializeToString()) as session:
        return list(session.run(feed).values())
