"""Bound buffers, on the CPU's memory: the same calls as on a GPU."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgekit.errors import BackendError
from edgekit.runtime.ort import OrtSession
from edgekit.runtime.ort_bound import SHAPES_KEPT, BoundRunner, can_bind, sized_by_inputs
from edgekit.tensors import TensorSpec
from tests.data import data_path
from tests.tiny import INPUT, OUTPUT, WEIGHT, tiny_model


def nonzero_model() -> bytes:
    """Indices of what is not zero: an output whose size depends on values."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["where"])],
        "nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("where", TensorProto.INT64, [1, "found"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_bound_buffers_give_what_a_plain_run_gives() -> None:
    path = data_path("clf_squeezenet11/squeezenet11_fp32.onnx")
    with OrtSession(path, threads=1) as plain, OrtSession(path, threads=1, bind=True) as bound:
        spec = plain.inputs[0]
        rng = np.random.default_rng(0)
        for _ in range(3):
            feed = {spec.name: rng.standard_normal(spec.concrete()).astype(np.float32)}
            want, got = plain.run(feed), bound.run(feed)
            for name in want:
                np.testing.assert_array_equal(want[name], got[name])


def test_results_are_the_callers_own() -> None:
    with OrtSession(tiny_model().SerializeToString(), threads=1, bind=True) as session:
        first = [session.run({"x": np.full((2, 4), i, np.float32)})["scores"] for i in range(4)]
    for i, scores in enumerate(first):
        np.testing.assert_allclose(scores, np.full((2, 4), i, np.float32) @ WEIGHT)


def test_many_shapes_and_an_empty_batch() -> None:
    with OrtSession(tiny_model().SerializeToString(), threads=1, bind=True) as session:
        for rows in (*range(SHAPES_KEPT + 5), 1, 0):
            x = np.ones((rows, 4), np.float32)
            np.testing.assert_allclose(session.run({"x": x})["scores"], x @ WEIGHT)


def test_an_output_sized_by_values_varies_between_runs() -> None:
    with OrtSession(nonzero_model(), threads=1, bind=True) as session:
        for values in ([0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]):
            where = session.run({"x": np.asarray(values, np.float32)})["where"]
            np.testing.assert_array_equal(where[0], np.flatnonzero(values))


def test_a_closed_bound_session_says_so() -> None:
    session = OrtSession(tiny_model().SerializeToString(), bind=True)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_graphs_run_each_shape_at_fixed_addresses() -> None:
    plain = onnxruntime.InferenceSession(tiny_model().SerializeToString(), providers=["CPUExecutionProvider"])
    runner = BoundRunner(
        onnxruntime, plain, inputs=(INPUT,), outputs=(OUTPUT,), device_type="cpu", device_id=0, graphs=True
    )
    for rows in (1, 2, 1, 2, 1, *range(1, SHAPES_KEPT + 4), 1):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(runner.run({"x": x})["scores"], x @ WEIGHT, atol=1e-6)
    runner.close()


def test_graphs_are_refused_where_sizes_depend_on_values() -> None:
    plain = onnxruntime.InferenceSession(nonzero_model(), providers=["CPUExecutionProvider"])
    specs = [TensorSpec("x", "float32", ("n",))], [TensorSpec("where", "int64", (1, "found"))]
    with pytest.raises(BackendError, match=r"'where' is \(1,found\)\. Leave graphs out"):
        BoundRunner(onnxruntime, plain, inputs=specs[0], outputs=specs[1], device_type="cpu", device_id=0, graphs=True)


def test_what_can_be_bound() -> None:
    text = TensorSpec("t", "string", (1,))
    assert can_bind([INPUT], [OUTPUT])
    assert not can_bind([INPUT, text], [OUTPUT])
    assert sized_by_inputs([INPUT], [OUTPUT])
    assert not sized_by_inputs([INPUT], [TensorSpec("y", "float32", ("other",))])
