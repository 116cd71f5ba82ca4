from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.engine.inspect import (
    EngineLayers,
    intended_precisions,
    layers_from_json,
    layers_from_log,
    summary_of,
)
from edgekit.quantize.fp16 import half_model
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, random

LOG = Path(__file__).with_name("logs") / "digits_int8_sm86_rtx1.7.txt"
"""The end of a verbose build log of TensorRT-RTX 1.7.1.116: the demo model's int8-trt variant for sm_86."""


def test_a_real_build_log_is_read() -> None:
    layers = layers_from_log(LOG.read_text())
    assert len(layers) == 32
    by_name = {layer.name: layer for layer in layers}
    conv = by_name["node_Conv_149_myl0_5"]
    assert (conv.kind, conv.precision, conv.reformat) == ("correlation", "int8", False)
    assert conv.nodes[0] == "node_Conv_149"
    assert conv.inputs[0].dtype == "int8"
    assert conv.inputs[0].shape == (-1, 16, 32, 32)
    assert conv.inputs[0].format == "(NHWC) Channel major format"
    assert [t.dtype for t in conv.outputs] == ["fp32"]
    assert by_name["__myl_CastReplConc_myl0_1"].reformat
    assert not by_name["__myl_CastMulMinMaxRounCast_myl0_3"].reformat
    assert by_name["__mye8598_myl0_4"].precision == ""  # it only keeps two streams in step
    assert by_name["__myl_FcAddCast_myl0_31"].nodes == ("node_linear", "logits_Cast")


def test_a_summary_of_the_real_log() -> None:
    intended = {f"node_Conv_{n}": "int8" for n in (149, 151, 153, 155, 157, 159, 161, 163, 165)}
    intended |= {"node_Conv_147": "fp16", "node_linear": "fp16"}
    summary = summary_of(EngineLayers(layers=layers_from_log(LOG.read_text()), intended=intended))
    assert summary.products == summary.intended == {"fp16": 2, "int8": 9}
    assert summary.mismatches == ()
    assert len(summary.float_outputs) == 9  # every INT8 convolution writes FP32: why this engine may not pay
    assert summary.reformats == 1


def test_a_product_in_another_precision_is_named() -> None:
    layers = layers_from_log(LOG.read_text())
    summary = summary_of(EngineLayers(layers=layers, intended={"node_linear": "int8", "node_Conv_149": "int8"}))
    assert [(m.node, m.intended, m.actual) for m in summary.mismatches] == [("node_linear", "int8", "fp16")]


def layer(name: str, kind: str, inputs: list[dict[str, object]], outputs: list[dict[str, object]]) -> dict[str, object]:
    return {
        "Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "TacticName": "sm80_xmma",
        "StreamId": 0, "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: relu]",
    }  # fmt: skip


def test_the_inspectors_json_of_both_generations() -> None:
    """TensorRT 10 writes "Format/Datatype" and "Bindings"; 11 splits the two and writes "I/O Tensors"."""
    old_in = {"Name": "x", "Location": "Device", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}
    old_out = {
        "Name": "y",
        "Dimensions": [1, 8, 8, 8],
        "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
    }
    old = {"Layers": [layer("conv", "CaskConvolution", [old_out], [old_in])], "Bindings": ["x", "y"]}
    new_in = {"Name": "x", "Dimensions": [1, 3, 8, 8], "Format": "Row major linear format", "Datatype": "Float"}
    new_out = {"Name": "y", "Dimensions": [1, 8, 8, 8], "Format": "Channel major format", "Datatype": "Half"}
    new = {"Layers": [layer("conv", "CaskConvolution", [new_out], [new_in])], "I/O Tensors": []}
    for document in (old, new):
        (found,) = layers_from_json(json.dumps(document))
        assert (found.precision, found.outputs[0].dtype, found.outputs[0].shape) == ("fp16", "fp32", (1, 3, 8, 8))
        assert found.nodes == ("conv", "relu")
        assert not found.reformat
    copy = {"Layers": [layer("Reformatting CopyNode for Input Tensor 0 to conv", "Reformat", [old_in], [old_out])]}
    assert layers_from_json(json.dumps(copy))[0].reformat


def test_names_alone_and_nonsense() -> None:
    (one,) = layers_from_json('{"Layers": ["conv + relu"], "Bindings": ["x"]}')
    assert (one.name, one.precision) == ("conv + relu", "")
    assert layers_from_json("not json") == ()
    assert layers_from_json("[1]") == ()
    assert layers_from_log("") == ()


def test_what_a_graph_asks_for() -> None:
    assert set(intended_precisions(prepared(conv_net())).values()) == {"fp32"}
    assert set(intended_precisions(half_model(prepared(conv_net()))).values()) == {"fp16"}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Cast", ["d"], ["h"], to=10),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="product"),
        helper.make_node("MatMul", ["y", "v"], ["o"], name="behind"),
    ]
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": random(16, 16).astype(np.float16)}
    weights["v"] = random(16, 16).astype(np.float16)
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT16, [4, 16])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert intended_precisions(model) == {"product": "int8", "behind": "fp16"}
