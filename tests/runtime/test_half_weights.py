from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.runtime.half_weights import has_half_weights
from tests.data import ROOT

RUN = """
import sys
import numpy as np
from pathlib import Path
from edgekit.runtime.ort import OrtSession
x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float16)
for model in (Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()):
    with OrtSession(model) as session:
        print(float(np.abs(session.run({"x": x})["y"] - x.transpose(1, 0, 2)).max()))
"""


def product(dtype: Any) -> Any:
    """A product with a unit matrix, batch and steps exchanged before it: as an LSTM or an encoder starts."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    value = helper.make_tensor_value_info
    weights = [
        numpy_helper.from_array(np.array([1, 2]), "unused"),
        numpy_helper.from_array(np.eye(8, dtype=dtype), "w"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", kind, ["batch", 5, 8])], [value("y", kind, [5, "batch", 8])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("dtype", "half"), [(np.float16, True), (np.float32, False)])
def test_the_dtype_of_weights_is_found_in_files_and_bytes(tmp_path: Path, dtype: Any, half: bool) -> None:
    data = product(dtype).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)
    assert has_half_weights(data) is half
    assert has_half_weights(tmp_path / "model.onnx") is half


def test_weights_beside_the_file_count_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(product(np.float16), path, save_as_external_data=True, size_threshold=0)
    assert has_half_weights(path)


def test_what_is_no_model_has_none(tmp_path: Path) -> None:
    whole = product(np.float16).SerializeToString()
    (tmp_path / "empty").write_bytes(b"")
    assert not has_half_weights(tmp_path / "empty")
    assert not has_half_weights(tmp_path / "missing")
    assert not has_half_weights(tmp_path)
    for junk in (b"\xff" * 40, b"\x07", b"PK\x03\x04 not a model", whole[: len(whole) // 3]):
        assert has_half_weights(junk) in (False, True)
    rng = np.random.default_rng(0)
    for _ in range(300):  # damaged anywhere, it neither fails nor goes on for ever
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        has_half_weights(bytes(damaged))


def test_an_fp16_product_behind_a_transpose_runs(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 dies of it, left to itself, so it has a process of its own."""
    onnx.save(product(np.float16), tmp_path / "model.onnx")
    command = [sys.executable, "-c", RUN, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["0.0", "0.0"]), done.stderr
