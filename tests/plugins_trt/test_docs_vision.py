"""The model of docs/plugins.md that goes from the camera to the detections is exported, and runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.runtime.ort import OrtSession
from tests.plugins_trt.test_docs import block


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_detector_of_the_page_runs_from_the_frame_to_the_detections() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block("python vision"), names)
    model = names["model"]
    found = [node.op_type for node in model.graph.node if node.domain == "edgekit"]
    assert found == ["letterbox_normalize", "decode_nms_head"]
    frame = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), np.uint8)
    with OrtSession(model.SerializeToString()) as session:
        count, boxes, scores, labels = session.run({session.inputs[0].name: frame}).values()
    assert 0 < count[0] <= 100
    assert boxes.shape == (1, 100, 4)
    assert (scores[0, : count[0]] > 0.25).all()
    assert (labels[0, : count[0]] >= 0).all()
    assert (labels[0, count[0] :] == -1).all()
