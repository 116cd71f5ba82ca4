"""A package small enough to make in a test: scores = x @ W, for three classes of four features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.manifest import SCHEMA, Manifest, Provenance, SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.tensors import TensorSpec

WEIGHT = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]], np.float32)
INPUT = TensorSpec("x", "float32", ("batch", 4))
OUTPUT = TensorSpec("scores", "float32", ("batch", 3))


def tiny_model(weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    """One MatMul."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"], name="matmul")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def tiny_manifest(name: str = "tiny", **fields: object) -> Manifest:
    """The manifest of a tiny package, before its variants."""
    provenance = Provenance(
        tool="tests", source="tiny.py", source_sha256="0" * 64, framework="onnx", opset=18, created="2026-01-01"
    )
    values: dict[str, object] = {
        "schema": SCHEMA,
        "name": name,
        "version": "1",
        "inputs": (Tensor.of(INPUT),),
        "outputs": (Tensor.of(OUTPUT),),
        "variants": (),
        "provenance": provenance,
        "task": "classification",
    }
    return Manifest(**{**values, **fields})  # type: ignore[arg-type]


def tiny_package(path: Path, *, weight: np.ndarray = WEIGHT, force: bool = False, samples: int = 16) -> Package:
    """A package with the variants "fp32" and "int8" (both really float: only their names matter here)."""
    x = np.random.default_rng(0).standard_normal((samples, 4)).astype(np.float32)
    with create(path, force=force) as writer:
        for variant in ("fp32", "int8"):
            writer.path(f"{variant}.onnx").write_bytes(tiny_model(weight).SerializeToString())
            writer.put(writer.variant_of(f"{variant}.onnx", id=variant, precision=variant, format="onnx", target="any"))
        writer.write_samples({"x": x}, {"scores": x @ weight})
        writer.write("labels.txt", b"red\ngreen\nblue\n")
        return writer.commit(tiny_manifest(samples=SampleSet(count=samples, source="recipe")))
