from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.export.cut import parts_from_file
from edgekit.export.stages import export_stages
from edgekit.package import Package
from edgekit.runtime.ort import OrtSession
from edgekit.runtime.placed import open_placed
from edgekit.verify import verify
from tests.data import data_path

node = helper.make_node
Run = Callable[..., subprocess.CompletedProcess[str]]


def residual(path: Path, blocks: int = 4) -> Path:
    """x -> blocks of x + relu(x @ w): every block's input skips over its product; the first is added at the end too."""
    nodes, weights, last = [], [], "x"
    for i in range(blocks):
        w = np.random.default_rng(i).standard_normal((8, 8)).astype(np.float32) / 4
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes += [
            node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"product{i}"),
            node("Relu", [f"m{i}"], [f"r{i}"]),
            node("Add", [f"r{i}", last], [f"b{i}"], name=f"add{i}"),
        ]
        last = f"b{i}"
    nodes.append(node("Add", [last, "b0"], ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def assert_whole(package: Package, original: Path, feed: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    with OrtSession(original, threads=1) as want, open_placed(package, devices=("cpu",), threads=1).session as got:
        outputs = got.run(feed)
        for name, value in want.run(feed).items():
            np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)
    assert verify(package).passed


@pytest.mark.parametrize(
    ("how", "stages"),
    [
        ({"count": 2}, 2),
        ({"count": 4}, 4),
        ({"at": ["b1"]}, 2),
        ({"at": ["b0", "m2"]}, 3),
        ({"at": ["r3"]}, 2),
    ],
)
def test_the_parts_together_are_the_whole(tmp_path: Path, how: dict[str, object], stages: int) -> None:
    path = residual(tmp_path / "net.onnx")
    parts = parts_from_file(path, tmp_path, **how)  # type: ignore[arg-type]
    assert [p.name for p in parts] == [f"net_{i}.onnx" for i in range(1, stages + 1)]
    for part in parts:
        onnx.checker.check_model(onnx.load(part), full_check=True)
    package = export_stages(parts, output=tmp_path / "net.edge")
    assert [t.name for t in package.manifest.inputs] == ["x"]
    assert [t.name for t in package.manifest.outputs] == ["y"]
    assert_whole(package, path, {"x": np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)})


def test_equal_parts_share_the_work_and_end_where_little_passes(tmp_path: Path) -> None:
    path = residual(tmp_path / "net.onnx")
    first, second = (onnx.load(p) for p in parts_from_file(path, tmp_path, count=2))
    assert [sum(n.op_type == "MatMul" for n in m.graph.node) for m in (first, second)] == [2, 2]
    assert [v.name for v in first.graph.output] == ["b0", "b1"]  # behind a block, not in the middle of one
    assert {t.name for t in first.graph.initializer} == {"w0", "w1"}


def test_a_real_network_in_three(tmp_path: Path) -> None:
    path = data_path("clf_squeezenet11/squeezenet11_fp32.onnx")
    parts = parts_from_file(path, tmp_path, count=3)
    package = export_stages(parts, output=tmp_path / "net.edge")
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    assert_whole(package, path, {"data_0": x})
    assert max(np.prod(t.shape) for s, p in package.stages()[:-1] for t in p.manifest.outputs) <= 64 * 28 * 28


def test_what_a_branch_reads_is_handed_on(tmp_path: Path) -> None:
    branch = [
        helper.make_graph(
            [node(op, ["h", "x"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["batch", 4])],
        )
        for op in ("Add", "Mul")
    ]
    nodes = [
        node("Tanh", ["x"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("If", ["flag"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        node("Add", ["i", "r"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [ends[0], flag], ends[1:])
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    first, second = (onnx.load(p) for p in parts_from_file(path, tmp_path, at=["r"]))
    assert [v.name for v in first.graph.output] == ["h", "r"]
    assert {v.name for v in second.graph.input} == {"h", "r", "x", "flag"}
    onnx.checker.check_model(second, full_check=True)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"at": ["q"]}, "'q' is not made by any node"),
        ({"at": ["x"]}, "'x' is not made by any node"),
        ({"at": ["b2", "b1"]}, "part at 'b1' is empty"),
        ({"at": ["y"]}, "part at 'the last tensor' is empty"),
        ({"count": 1}, "cannot become 1 stages; expected 2 to 13"),
        ({"count": 14}, "cannot become 14 stages"),
    ],
)
def test_cuts_that_cannot_be_made(tmp_path: Path, how: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parts_from_file(residual(tmp_path / "net.onnx"), tmp_path, **how)  # type: ignore[arg-type]


def test_the_command_line_cuts(edgekit: Run, tmp_path: Path) -> None:
    residual(tmp_path / "net.onnx")
    for extra in (("--stages", "2"), ("--split-at", "b1")):
        done = edgekit("export", "net.onnx", "-o", "net.edge", "--force", *extra, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "net_2.edge" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.edge", "net.onnx"]
    for extra in (("net.onnx", "--stages", "2", "--split-at", "b1"), ("net.onnx", "net.onnx", "--stages", "2")):
        done = edgekit("export", *extra, "-o", "q.edge", cwd=tmp_path)
        assert (done.returncode, "cuts one .onnx file into stages" in done.stderr) == (2, True), done.stderr
