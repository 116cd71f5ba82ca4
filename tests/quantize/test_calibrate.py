from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import CheckError
from edgekit.quantize.calibrate import RangeCollector, histograms, observe
from edgekit.quantize.prepare import prepared
from edgekit.quantize.search import observed
from tests.quantize.nets import conv_net, images
from tests.quantize.test_qdq import data_of


def test_histograms_hold_every_value_of_every_row() -> None:
    model = prepared(conv_net())
    found = histograms(model, ["x", "a1"], data_of(images(21)))
    assert found["x"].counts.sum() == images(21).size
    assert found["a1"].counts.sum() == 21 * 8 * 12 * 12
    assert found["x"].low == float(images(21).min())
    assert found["a1"].low == 0.0


def test_all_tensors_that_a_placement_needs_are_observed() -> None:
    names = observed(prepared(conv_net()))
    assert names[0] == "x"
    assert {"a1", "a2", "a3", "f"} <= set(names)
    assert "c1" not in names, "what is before a fused activation is never quantised"


def test_groups_give_the_same_statistics_as_one_run() -> None:
    model, data = prepared(conv_net()), data_of(images(8))
    names = observed(model)
    whole = RangeCollector()
    observe(model, names, data, whole)
    small = RangeCollector()
    steps: list[int] = []
    observe(model, names, data, small, group_bytes=10_000, progress=lambda what, done, total: steps.append(total))
    assert steps[-1] > 8, "several groups, a row at a time"
    assert small.low.keys() == whole.low.keys()
    for name in names:
        assert small.high[name] == pytest.approx(whole.high[name], rel=1e-5)


def test_nan_activations_are_named() -> None:
    collector = RangeCollector()
    with pytest.raises(CheckError, match="Tensor 'a1' is NaN"):
        collector("a1", np.array([1.0, np.nan], np.float32))
