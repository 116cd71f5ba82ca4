"""Packages that serving tests need: every datatype, defaults and scalars, and a real classifier with real digits."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.manifest import SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.tensors import Tensors, TensorSpec, dtype_of
from tests.data import data_path
from tests.tiny import tiny_manifest

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "string"),
)
"""All datatypes but bfloat16, which ONNX Runtime does not run beside strings: it has a package of its own."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_package(
    path: Path,
    model: bytes,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    samples: tuple[Tensors, Tensors] | None = None,
    labels: bytes = b"",
    **fields: object,
) -> Package:
    """A package of one fp32 variant."""
    with create(path) as writer:
        writer.path("fp32.onnx").write_bytes(model)
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        described = {"inputs": tuple(map(Tensor.of, inputs)), "outputs": tuple(map(Tensor.of, outputs)), **fields}
        if samples is not None:
            writer.write_samples(*samples)
            described["samples"] = SampleSet(count=len(next(iter(samples[0].values()))), source="file")
        if labels:
            writer.write("labels.txt", labels)
        return writer.commit(tiny_manifest(path.stem, **described))


def identity_package(path: Path, dtypes: tuple[str, ...] = DTYPES) -> Package:
    """Input `in_DTYPE` comes out as `out_DTYPE`, for every datatype; all share a batch."""
    nodes = [helper.make_node("Identity", [f"in_{d}"], [f"out_{d}"]) for d in dtypes]
    inputs = tuple(TensorSpec(f"in_{d}", d, ("batch", 2)) for d in dtypes)
    outputs = tuple(TensorSpec(f"out_{d}", d, ("batch", 2)) for d in dtypes)
    return write_package(path, _model(nodes, inputs, outputs), inputs=inputs, outputs=outputs)


def scaled_package(path: Path) -> Package:
    """y = x * scale, where scale is a scalar that callers may leave out (2)."""
    inputs = (TensorSpec("x", "float32", ("n",)), TensorSpec("scale", "float32", ()))
    outputs = (TensorSpec("y", "float32", ("n",)),)
    model = _model([helper.make_node("Mul", ["x", "scale"], ["y"])], inputs, outputs)
    return write_package(path, model, inputs=inputs, outputs=outputs, defaults={"scale": 2.0})


def words_package(path: Path) -> Package:
    """One BYTES input, given back."""
    inputs, outputs = (TensorSpec("text", "string", ("n",)),), (TensorSpec("same", "string", ("n",)),)
    return write_package(
        path,
        _model([helper.make_node("Identity", ["text"], ["same"])], inputs, outputs),
        inputs=inputs,
        outputs=outputs,
    )


def wide_package(path: Path, width: int = 1 << 20) -> Package:
    """y = x + 1 the long way, for a row so wide (4 MiB) that it crosses many reads of a socket, and slow enough for a
    thread of its own."""
    inputs, outputs = (TensorSpec("x", "float32", ("batch", width)),), (TensorSpec("y", "float32", ("batch", width)),)
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [
        helper.make_node("Cos", ["x"], ["a"]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "zero"], ["c"]),
        helper.make_node("Add", ["x", "one"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    samples = ({"x": np.zeros((1, width), np.float32)}, {"y": np.ones((1, width), np.float32)})
    return write_package(
        path, _model(nodes, inputs, outputs, [one, zero]), inputs=inputs, outputs=outputs, samples=samples
    )


def mnist_package(path: Path) -> Package:
    """A real classifier of handwritten digits, trained with PyTorch, with real images as samples."""
    source = data_path("mnist_models/mnist_torch_op16.onnx")
    images, _ = mnist_images(1)
    from edgekit.runtime.ort import OrtSession

    with OrtSession(source) as session:
        inputs, outputs = session.inputs, session.outputs
        reference = session.run({inputs[0].name: images})
    return write_package(
        path,
        source.read_bytes(),
        inputs=inputs,
        outputs=outputs,
        samples=({inputs[0].name: images}, reference),
        labels="\n".join(DIGITS).encode(),
    )


def mnist_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of MNIST's test set as the model takes them, (n, 1, 28, 28) float32, and their classes."""
    folder = data_path("data_mnist_t10k")
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    classes = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, count * 784, 16).reshape(count, 1, 28, 28)
    scaled = (images.astype(np.float32) / 255 - 0.1307) / 0.3081
    return scaled, np.frombuffer(classes, np.uint8, count, 8)


def _model(
    nodes: list, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], weights: list | None = None
) -> bytes:
    def value(spec: TensorSpec) -> object:
        return helper.make_tensor_value_info(spec.name, dtype_of(spec.dtype).onnx, list(spec.shape))

    assert dtype_of("float32").onnx == TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", [value(s) for s in inputs], [value(s) for s in outputs], weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def copy_with_changed_byte(package: Path, target: Path) -> Path:
    """A copy of a package whose model has one other byte."""
    shutil.copytree(package, target)
    data = bytearray((target / "fp32.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (target / "fp32.onnx").write_bytes(data)
    return target
