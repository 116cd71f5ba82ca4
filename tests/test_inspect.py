from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import IntegrityError, ModelError, UsageError
from edgekit.inspect import graph_of, inspect_model, inspect_package
from edgekit.package import Package
from tests.data import data_path
from tests.tiny import WEIGHT


def quantized_model() -> onnx.ModelProto:
    """x -> Q -> DQ -> MatMul(DQ(int8 weight)) -> Add(bias) twice, the second MatMul reading the same weight."""
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.uint8(128), "z")
    weight_zero = numpy_helper.from_array(np.int8(0), "wz")
    weight = numpy_helper.from_array(np.ones((4, 4), np.int8), "w")
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"], name="first"),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("MatMul", ["a", "wd"], ["y"], name="second"),
    ]
    scopes = helper.make_node("Identity", ["x"], ["x"])  # only to build the metadata entry below
    entry = scopes.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'blocks', 'blocks.0.fc', 'linear']"
    nodes[3].metadata_props.add().CopyFrom(entry)
    broken = nodes[5].metadata_props.add()
    broken.key, broken.value = "pkg.torch.onnx.name_scopes", "['', __import__('os')"
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [scale, zero, weight_zero, weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def test_layers_of_a_quantized_graph_show_what_the_weights_are_stored_as() -> None:
    graph = graph_of(quantized_model(), variant="int8")
    layers = {layer.name or layer.op: layer for layer in graph.layers}
    assert [layer.op for layer in graph.layers] == ["QuantizeLinear", "DequantizeLinear", "MatMul", "Add", "MatMul"]
    first, second = layers["first"], layers["second"]
    assert (first.weights, first.weight_bytes, first.shape, first.dtype) == ("int8", 16 + 1, (1, 4), "float32")
    assert (second.weights, second.weight_bytes) == ("int8", 0)  # the same weight, counted once
    assert first.flops == second.flops == 2 * 4 * 4
    assert graph.flops == 64
    assert (first.module, second.module) == ("blocks.0.fc", "")
    assert layers["QuantizeLinear"].dtype == "uint8"
    assert graph.operators["DequantizeLinear"] == 2


def test_real_models_have_the_figures_of_their_papers() -> None:
    squeezenet = inspect_model(data_path("clf_squeezenet11/squeezenet11_fp32.onnx")).graph
    assert squeezenet is not None
    assert squeezenet.parameters == 1_235_496
    assert squeezenet.flops == pytest.approx(2 * 349e6, rel=0.01)  # 349 M multiply-accumulates
    assert sum(layer.weight_bytes for layer in squeezenet.layers) == 4 * squeezenet.parameters
    assert sum(layer.flops or 0 for layer in squeezenet.layers) == squeezenet.flops
    half = inspect_model(data_path("clf_squeezenet11/squeezenet11_fp16.onnx")).graph
    assert half is not None
    assert {layer.weights for layer in half.layers} == {"float16", None}
    assert sum(layer.weight_bytes for layer in half.layers) == 2 * half.parameters


def test_the_real_int8_model_keeps_its_operations() -> None:
    int8 = inspect_model(data_path("tinyml_mlperf_tiny/resnet8_cifar_int8_qdq.onnx")).graph
    plain = inspect_model(data_path("tinyml_mlperf_tiny/resnet8_cifar.onnx")).graph
    assert int8 is not None
    assert plain is not None
    assert int8.flops == plain.flops
    convolutions = [layer for layer in int8.layers if layer.op == "Conv"]
    assert {layer.weights for layer in convolutions} == {"int8"}


def test_free_dimensions_and_unknown_shapes_are_said() -> None:
    core = inspect_model(data_path("sr_espcn_x3/superres_x3_core.onnx")).graph
    assert core is not None
    assert len(core.taken_as_1) == 2
    custom = inspect_model(data_path("sr_espcn_x3/superres_x3_with_custom_pre_post_op18.onnx")).graph
    assert custom is not None
    assert custom.flops is None
    assert any(layer.op.startswith("com.microsoft.extensions::") for layer in custom.layers)


def test_a_package_is_checked_file_by_file(tiny: Package) -> None:
    got = inspect_package(tiny)
    assert {f.name for f in got.checked} == {"fp32.onnx", "int8.onnx", "samples.npz", "labels.txt"}
    assert (got.labels, got.strangers) == (3, ())
    assert got.graph is not None
    assert (got.graph.variant, got.graph.parameters, got.graph.flops) == ("fp32", WEIGHT.size, 2 * WEIGHT.size)
    (tiny.path / "notes.txt").write_text("mine")
    (tiny.path / "reports").mkdir()
    (tiny.path / "reports" / "bench.json").write_text("{}")
    assert inspect_package(tiny, variant="int8").strangers == ("notes.txt",)


@pytest.mark.parametrize("name", ["labels.txt", "int8.onnx", "samples.npz"])
def test_a_changed_file_is_named_whichever_it_is(tiny: Package, name: str) -> None:
    data = bytearray((tiny.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny.path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        inspect_package(Package.open(tiny.path))


def test_a_lost_file_and_an_unknown_variant_are_named(tiny: Package) -> None:
    with pytest.raises(UsageError, match="it has fp32, int8"):
        inspect_package(tiny, variant="fp8")
    (tiny.path / "int8.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"lacks its file 'int8\.onnx'"):
        inspect_package(tiny)


def test_an_engine_is_not_read_as_a_graph(tiny: Package) -> None:
    with tiny.edit() as writer:
        writer.path("a.engine").write_bytes(b"engine")
        writer.put(
            writer.variant_of("a.engine", id="fp16-sm87", precision="fp16", format="tensorrt", target="sm87-trt10.16")
        )
        package = writer.commit()
    got = inspect_package(package, variant="fp16-sm87")
    assert got.graph is None
    assert "tensorrt engine" in got.graph_note


def test_without_onnx_the_rest_is_told(tiny: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    got = inspect_package(tiny)
    assert got.graph is None
    assert "pip install 'edgekit[export]'" in got.graph_note
    assert len(got.checked) == 4
    bare = inspect_model(tiny.path / "fp32.onnx")
    assert bare.graph is None
    assert bare.sha256 == tiny.variant("fp32").sha256


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08\x07\x12\x04", None])
def test_files_that_are_no_model_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        inspect_model(path)
