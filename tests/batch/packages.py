"""Small packages whose results can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.manifest import SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.preprocess import ImagePreprocess
from edgekit.tensors import TensorSpec
from tests.tiny import tiny_manifest

CLASSES = ("dark", "bright")


def _model(nodes: list[onnx.NodeProto], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bytes:
    def infos(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in specs]

    weights = [
        numpy_helper.from_array(np.array([[-1, 1]] * 4, np.float32), "w"),
        numpy_helper.from_array(np.array([2, -2], np.float32), "b"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "m", infos(inputs), infos(outputs), [w for w in weights if w.name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _package(
    path: Path,
    model: bytes,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    samples: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],  # type: ignore[type-arg]
    **fields: object,
) -> Package:
    with create(path) as writer:
        writer.path("fp32.onnx").write_bytes(model)
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        writer.write_samples(*samples)
        if fields.get("task"):
            writer.write("labels.txt", "\n".join(CLASSES).encode())
        manifest = tiny_manifest(
            path.stem,
            inputs=tuple(map(Tensor.of, inputs)),
            outputs=tuple(map(Tensor.of, outputs)),
            samples=SampleSet(count=len(next(iter(samples[0].values()))), source="recipe"),
            **{"task": "", **fields},
        )
        return writer.commit(manifest)


def brightness(path: Path) -> Package:
    """Pictures of 2 by 2 pixels as "bright" or "dark": scores are (2 - sum, sum - 2) of pixels in 0 to 1."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    inputs, outputs = (TensorSpec("x", "float32", ("batch", 1, 2, 2)),), (TensorSpec("y", "float32", ("batch", 2)),)
    x = np.array([[[[0, 0], [0, 0.5]]], [[[1, 1], [1, 0.5]]]], np.float32)
    total = x.reshape(2, 4).sum(axis=1, keepdims=True)
    return _package(
        path,
        _model(nodes, inputs, outputs),
        inputs,
        outputs,
        ({"x": x}, {"y": np.concatenate([2 - total, total - 2], axis=1)}),
        task="classification",
        preprocess={"x": ImagePreprocess(height=2, width=2, color="L")},
    )


def rectifier(path: Path) -> Package:
    """y = relu(x) of shape (batch, n, 2) with n free."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    inputs = (TensorSpec("x", "float32", ("batch", "n", 2)),)
    outputs = (TensorSpec("y", "float32", ("batch", "n", 2)),)
    x = np.ones((2, 3, 2), np.float32)
    return _package(path, _model(nodes, inputs, outputs), inputs, outputs, ({"x": x}, {"y": x}))


def positives(path: Path) -> Package:
    """The places of what is above zero in x (batch, 4): as many columns as there are, whatever the rows."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["g"]),
        helper.make_node("NonZero", ["g"], ["nz"]),
        helper.make_node("Transpose", ["nz"], ["t"], perm=[1, 0]),
        helper.make_node("Cast", ["t"], ["found"], to=TensorProto.FLOAT),
    ]
    inputs, outputs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("found", "float32", ("count", 2)),)
    x = np.array([[1, -1, 1, 1], [1, 1, 1, -1]], np.float32)
    return _package(
        path,
        _model(nodes, inputs, outputs),
        inputs,
        outputs,
        ({"x": x}, {"found": np.argwhere(x > 0).astype(np.float32)}),
    )
