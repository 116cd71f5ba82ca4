from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.layers import bisect, compare_layers
from edgekit.manifest import SampleSet
from edgekit.package import Package, create
from edgekit.runtime.ort import OrtSession
from tests.tiny import tiny_manifest

Run = Callable[..., subprocess.CompletedProcess[str]]
LAYERS = 5


def chain(weights: list[np.ndarray]) -> onnx.ModelProto:
    """x -> MatMul -> Relu -> MatMul -> Relu ... -> scores."""
    nodes, constants, name = [], [], "x"
    for i, weight in enumerate(weights):
        out = "scores" if i == len(weights) - 1 else f"r{i}"
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"], name=f"matmul_{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [out], name=f"relu_{i}"))
        constants.append(numpy_helper.from_array(weight, f"w{i}"))
        name = out
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def chain_package(path: Path, broken: list[np.ndarray]) -> tuple[Package, list[np.ndarray]]:
    """A package with "fp32" and a variant "bad" that has the weights `broken`."""
    rng = np.random.default_rng(0)
    good = [np.abs(rng.standard_normal((4, 4))).astype(np.float32) for _ in range(LAYERS)]
    x = np.abs(rng.standard_normal((8, 4))).astype(np.float32)
    scores = x
    for weight in good:
        scores = np.maximum(scores @ weight, 0)
    weights = [b if b.size else g for b, g in zip(broken, good)]
    with create(path) as writer:
        for name, values in (("fp32", good), ("bad", weights)):
            writer.path(f"{name}.onnx").write_bytes(chain(values).SerializeToString())
            writer.put(writer.variant_of(f"{name}.onnx", id=name, precision="fp32", format="onnx", target="any"))
        writer.write_samples({"x": x}, {"scores": scores})
        return writer.commit(tiny_manifest(samples=SampleSet(count=8, source="recipe"))), good


def broken_at(index: int, weight: np.ndarray) -> list[np.ndarray]:
    return [weight if i == index else np.zeros(0, np.float32) for i in range(LAYERS)]


@pytest.mark.parametrize("index", range(LAYERS))
def test_the_first_bad_layer_is_named(tmp_path: Path, index: int) -> None:
    package, _ = chain_package(tmp_path / "x.edge", broken_at(index, np.eye(4, dtype=np.float32)))
    report = compare_layers(package, "bad")
    assert report.first_bad is not None
    assert report.first_bad.node == f"matmul_{index}"
    for layer in report.layers:
        before = int(layer.node[-1]) < index
        assert (layer.snr_db == math.inf) == before


def test_equal_variants_have_no_bad_layer(tmp_path: Path) -> None:
    package, _ = chain_package(tmp_path / "x.edge", broken_at(-1, np.zeros(0)))
    report = compare_layers(package, "bad")
    assert report.first_bad is None
    assert len(report.layers) == 2 * LAYERS
    assert bisect(package, "bad") is None


def test_bisect_cuts_out_the_one_broken_node(tmp_path: Path) -> None:
    package, good = chain_package(tmp_path / "x.edge", broken_at(2, np.eye(4, dtype=np.float32)))
    piece = bisect(package, "bad")
    assert piece is not None
    assert piece.bisection.nodes == ("matmul_2",)
    assert piece.bisection.inputs == ("r1",)
    with OrtSession(piece.model.SerializeToString()) as session:
        got = session.run(piece.inputs)["m2"]
    np.testing.assert_allclose(piece.expected["m2"], piece.inputs["r1"] @ good[2], rtol=1e-5)
    np.testing.assert_allclose(got, piece.inputs["r1"], rtol=1e-6)


def test_errors_that_only_add_up_are_cut_where_they_add_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = [np.abs(rng.standard_normal((4, 4))).astype(np.float32) for _ in range(LAYERS)]
    package, _ = chain_package(tmp_path / "x.edge", [(w * 1.04).astype(np.float32) for w in good])
    piece = bisect(package, "bad", limit_db=20)  # 4 % a layer is 28 dB; three layers are 12 %, under 20 dB
    assert piece is not None
    assert len([n for n in piece.bisection.nodes if n.startswith("matmul")]) == 3


def test_nan_is_a_bad_layer(tmp_path: Path) -> None:
    weight = np.full((4, 4), np.nan, np.float32)
    package, _ = chain_package(tmp_path / "x.edge", broken_at(3, weight))
    report = compare_layers(package, "bad")
    assert report.first_bad is not None
    assert (report.first_bad.node, report.first_bad.snr_db) == ("matmul_3", None)
    piece = bisect(package, "bad")
    assert piece is not None
    assert piece.bisection.nodes == ("matmul_3",)
    assert "NaN" in piece.bisection.alone


def test_the_command_writes_the_piece(tmp_path: Path, edgekit: Run) -> None:
    package, _ = chain_package(tmp_path / "x.edge", broken_at(2, np.eye(4, dtype=np.float32)))
    done = edgekit("verify", package.path, "--variant", "bad", "--layers")
    assert done.returncode == 1
    assert "first bad layer: matmul_2 (MatMul)" in done.stderr
    done = edgekit("verify", package.path, "--variant", "bad", "--bisect", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["nodes"] == ["matmul_2"]
    onnx.checker.check_model(onnx.load(package.path / "reports/bisect-bad.onnx"))
    with np.load(package.path / "reports/bisect-bad.npz") as arrays:
        assert set(arrays.files) == {"input/r1", "output/m2"}


def test_the_reference_and_several_variants_are_misuse(tiny: Package, edgekit: Run) -> None:
    with pytest.raises(UsageError, match="the reference itself"):
        compare_layers(tiny, "fp32")
    assert edgekit("verify", tiny.path, "--layers").returncode == 2


def test_int8_of_the_demo_model_layer_by_layer(digits: Package) -> None:
    report = compare_layers(digits, "int8")
    by_operator = {layer.operator for layer in report.layers}
    assert "Conv" in by_operator
    assert any(layer.module.startswith("blocks.0") for layer in report.layers)
    assert report.first_bad is None
    assert all(layer.snr_db is not None and layer.snr_db < math.inf for layer in report.layers[1:])


def test_a_factor_between_layers_is_no_error_where_the_variant_was_rescaled(tmp_path: Path) -> None:
    package, good = chain_package(tmp_path / "x.edge", broken_at(-1, np.zeros(0)))
    factors = np.array([0.3, 1, 3, 7], np.float32)
    moved = [good[0] * factors, (good[1].T / factors).T.astype(np.float32), *good[2:]]
    with package.edit() as writer:
        writer.path("moved.onnx").write_bytes(chain(moved).SerializeToString())
        fields = {"precision": "fp32", "format": "onnx", "target": "any"}
        steps = {"steps": ["cross-layer equalisation 0.5"]}
        writer.put(writer.variant_of("moved.onnx", id="moved", settings=steps, **fields))
        package = writer.commit()
    report = compare_layers(package, "moved")
    assert report.first_bad is None
    assert all(layer.snr_db is not None and layer.snr_db > 100 for layer in report.layers)
    assert compare_layers(package, "bad").first_bad is None
    with pytest.raises(UsageError, match="--plain"):
        bisect(package, "moved", limit_db=1000)
