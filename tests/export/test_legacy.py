"""The reference is ONNX Runtime itself, which still runs these operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgekit.export.cleanup import upgraded
from edgekit.export.legacy import replace_legacy_operators
from tests.export.common import model, operators, run

CASES = [
    ("ImageScaler", {"scale": 0.5, "bias": [1.0, -2.0, 3.0]}),
    ("Affine", {"alpha": 2.0, "beta": -1.0}),
    ("Crop", {"border": [1, 2, 3, 0]}),
    ("Crop", {"border": [1, 2, 0, 0], "scale": [3, 2]}),
    ("ParametricSoftplus", {"alpha": 2.0, "beta": 0.5}),
    ("ScaledTanh", {"alpha": 2.0, "beta": 0.5}),
]


@pytest.mark.parametrize(("operator", "attributes"), CASES)
def test_standard_operators_compute_what_the_old_one_did(operator: str, attributes: dict[str, object]) -> None:
    nodes = [helper.make_node(operator, ["x"], ["h"], **attributes), helper.make_node("Relu", ["h"], ["y"])]
    proto = model(nodes, {"x": (2, 3, 8, 9)}, {"y": [None] * 4}, opset=7)
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 9)).astype(np.float32)
    before = run(proto, x=x)["y"]
    assert replace_legacy_operators(proto) == {operator: 1}
    assert operator not in operators(proto)
    np.testing.assert_allclose(run(proto, x=x)["y"], before, rtol=1e-6, atol=1e-6)
    newer = upgraded(proto, 18)
    assert newer is not None
    np.testing.assert_allclose(run(newer, x=x)["y"], before, rtol=1e-6, atol=1e-6)


def test_a_model_without_them_is_untouched() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1,)}, {"y": (1,)})
    before = proto.SerializeToString()
    assert replace_legacy_operators(proto) == {}
    assert proto.SerializeToString() == before
