"""Small ONNX models that fit behind each other, and packages of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.export.stages import export_stages, parse_link
from edgekit.package import Package


def weight(rows: int, columns: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)


def layer(path: Path, takes: str, gives: str, rows: int, columns: int) -> Path:
    """relu(x @ weight(rows, columns)) as an ONNX file."""
    nodes = [helper.make_node("MatMul", [takes, "w"], ["m"]), helper.make_node("Relu", ["m"], [gives])]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(takes, TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info(gives, TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weight(rows, columns), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def two_layers(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """What `pair` computes."""
    return np.asarray(np.maximum(np.maximum(x @ weight(8, 16), 0) @ weight(16, 4), 0))


def pair(folder: Path, *, samples: Path | None = None, links: tuple[str, ...] = (), names: str = "h h") -> Package:
    """folder/pair.edge: encoder x[8] -> h[16], decoder h[16] -> y[4]; `names` are those of the tensor between."""
    folder.mkdir(exist_ok=True)
    given, taken = names.split()
    sources = [layer(folder / "encoder.onnx", "x", given, 8, 16), layer(folder / "decoder.onnx", taken, "y", 16, 4)]
    found = [parse_link(text) for text in links]
    return export_stages(sources, output=folder / "pair.edge", links=found, samples=samples)


def with_int8(package: Package, stage: int, *, scale: float = 1.0) -> Package:
    """The pair with a second variant of one stage, called int8: the same graph, its weights times `scale`."""
    own = package.stages()[stage][1]
    model = onnx.load(own.file("fp32.onnx"))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(scale * numpy_helper.to_array(tensor), tensor.name))
    with own.edit() as writer:
        onnx.save(model, writer.path("int8.onnx"))
        writer.put(writer.variant_of("int8.onnx", id="int8", precision="int8", format="onnx", target="any"))
        writer.commit()
    return Package.open(package.path)
