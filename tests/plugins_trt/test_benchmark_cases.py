"""The rivals that the kernels of vision are held against compute the same, so that their times mean something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.plugin_cases import decode_nms, letterbox_normalize, roi_align
from benchmarks.plugins import all_cases, listing
from plugins_trt.decode_nms import DecodeNms
from plugins_trt.letterbox_normalize import LetterboxNormalize
from plugins_trt.roi_align import RoiAlign
from tests.plugins_trt.checks import assert_close
from tests.plugins_trt.test_benchmark import FIGURES

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("nv12", [False, True])
@pytest.mark.parametrize("size", [(2, 48, 90), (1, 20, 16)])
def test_the_letterbox_of_pytorch(size: tuple[int, int, int], nv12: bool, antialias: int) -> None:
    operator = LetterboxNormalize(nv12=nv12)
    call = operator.example(size, height=40, width=40, pad=114.0, antialias=antialias)
    arrays = operator.sample(call)
    got = letterbox_normalize.composed(torch, torch.from_numpy(arrays[0]), call)
    assert_close([got.numpy()], operator.reference(call, *arrays), relative=1e-4)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("boxes", {}),
        ("head", {}),
        ("boxes", {"score_threshold": 0.0}),
        ("anchors", {"multi_label": 1, "background": 1}),
    ],
)
def test_the_detections_of_pytorch(kind: Any, attributes: dict[str, int]) -> None:
    operator = DecodeNms(kind)
    call = operator.example((2, 300, 6), "float32", max_detections=60, **attributes)
    arrays = operator.sample(call)
    want = operator.reference(call, *arrays)
    found = decode_nms.composed(torch, call, [torch.from_numpy(a) for a in arrays], decode_nms.by_matrix)
    assert want[0].min() > 20
    for image, (count, boxes, scores, labels) in enumerate(found):
        assert count == want[0][image]
        np.testing.assert_allclose(boxes.numpy(), want[1][image, :count], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(scores.numpy(), want[2][image, :count], rtol=1e-6)
        np.testing.assert_array_equal(labels.numpy(), want[3][image, :count])


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("levels", [1, 4])
def test_the_regions_of_pytorch(levels: int, aligned: int) -> None:
    operator = RoiAlign(levels)
    call = operator.example((1, 5, 64, 80), 30, "float32", output_height=3, output_width=4, aligned=aligned)
    *maps, rois, at = operator.sample(call)
    rois = np.clip(np.abs(rois), 20, (300, 240, 300, 240)).astype(np.float32)  # on the image, with room at the border
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2] + 4)
    arrays = [*maps, rois, at]
    got = roi_align.composed(torch, call, [torch.from_numpy(a) for a in arrays])
    assert_close([got.numpy()], operator.reference(call, *arrays), relative=1e-4)


def test_what_is_asked_is_measured() -> None:
    cases = all_cases([])
    shares = {case.operator.name: case.asked_share for case in cases if case.asked_share}
    assert {"letterbox_normalize", "letterbox_normalize_nv12", "roi_align", "roi_align_fpn4"} <= set(shares)
    assert set(shares.values()) == {0.8}
    asked = {case.operator.name: (case.asked, case.asked_s) for case in cases if case.asked_s}
    assert asked == dict.fromkeys(("decode_nms", "decode_nms_head"), ((decode_nms.COMPOSED, 3.0), 60e-6))
    assert all(len(line) <= 80 and "  " in line for line in listing(cases).splitlines())


def test_a_time_and_a_rival_are_both_held() -> None:
    figures = replace(FIGURES, asked_s=60e-6)
    met, words = figures.verdict()
    assert met is True
    assert words.endswith("asked for 2 x. 40.0 us; asked for 60 us")
    assert replace(figures, asked_s=30e-6).verdict()[0] is False
    unmeasured = dict.fromkeys(FIGURES.rivals_s)
    assert replace(figures, rivals_s=unmeasured).verdict()[0] is None
    assert replace(figures, rivals_s=unmeasured, asked_s=30e-6).verdict()[0] is False
