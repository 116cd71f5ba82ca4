"""The measures of detectors on cases that can be counted by hand, and what the detectors of the zoo are made of."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import plugins_trt.torch as ops
from edgekit.recipe import spec_from_recipe
from models._detection import (
    Judged,
    box_overlaps,
    giou,
    kept_boxes,
    mask_overlaps,
    mean_average_precision,
    pairwise_iou,
)
from tests.data import ROOT


def loaded(name: str) -> ModuleType:
    return sys.modules[spec_from_recipe(ROOT / "models" / f"{name}.py").build.__module__]


def judged(scores: list[float], classes: list[int], truth: list[int], overlaps: list[list[float]]) -> Judged:
    shape = (len(scores), len(truth))
    return Judged(np.array(scores), np.array(classes), np.array(truth), np.array(overlaps).reshape(shape))


def test_average_precision_of_cases_that_can_be_counted() -> None:
    right = judged([0.9, 0.8], [1, 2], [1, 2], [[0.9, 0], [0, 0.6]])
    assert mean_average_precision([right]) == 1
    assert mean_average_precision([right], threshold=0.75) == 0.5, "the second class overlaps too little"
    assert mean_average_precision([judged([], [], [3], [])]) == 0, "nothing found"
    assert mean_average_precision([judged([0.9], [1], [], [])]) == 0, "nothing there"
    twice = judged([0.9, 0.8], [1, 1], [1, 1], [[0.9, 0], [0.8, 0]])
    assert mean_average_precision([twice]) == 0.5, "an object is found once, the other is missed"
    wrong_first = judged([0.9, 0.8], [1, 1], [1], [[0.1], [0.9]])
    assert mean_average_precision([wrong_first]) == 0.5, "recall 1 is reached at precision 1/2"
    wrong_last = judged([0.9, 0.8], [1, 1], [1], [[0.9], [0.1]])
    assert mean_average_precision([wrong_last]) == 1, "what is found wrong after everything right costs nothing"


def test_average_precision_takes_detections_of_all_images_in_one_order() -> None:
    # by score: right, wrong, right of two objects: 1/2 * 1 + 1/2 * 2/3
    images = [judged([0.9, 0.5], [0, 0], [0, 0], [[1, 0], [0, 1]]), judged([0.7], [0], [], [])]
    assert mean_average_precision(images) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # the envelope: after wrong, right, right the precision at every recall is 2/3
    images = [judged([0.8, 0.7], [0, 0], [0, 0], [[1, 0], [0, 1]]), judged([0.9], [0], [], [])]
    assert mean_average_precision(images) == pytest.approx(2 / 3)


def test_overlaps_of_boxes_and_masks() -> None:
    boxes = np.array([[0, 0, 4, 2], [10, 10, 11, 11]], np.float32)
    others = np.array([[2, 0, 6, 2], [0, 0, 4, 2], [20, 20, 21, 21]], np.float32)
    np.testing.assert_allclose(box_overlaps(boxes, others), [[1 / 3, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(pairwise_iou(torch.tensor(boxes), torch.tensor(others)), [[1 / 3, 1, 0], [0, 0, 0]])
    drawn = np.zeros((2, 12, 24), bool)
    for mask, (left, top, right, bottom) in zip(drawn, boxes.astype(int)):
        mask[top:bottom, left:right] = True
    np.testing.assert_allclose(mask_overlaps(drawn, drawn), np.eye(2))
    # apart by 4 of a frame of 12 x 2: GIoU is 0 - (24 - 16) / 24
    apart = giou(torch.tensor([0.0, 0, 4, 2]), torch.tensor([8.0, 0, 12, 2]))
    assert float(apart) == pytest.approx(-1 / 3)


def test_proposals_of_training_are_those_of_the_graph() -> None:
    recipe = loaded("mask_rcnn")
    torch.manual_seed(0)
    net = recipe.MaskRCNN().eval()
    images = torch.as_tensor(recipe.scenes(2, 3)[0])
    with torch.no_grad():
        fine, coarse, offsets, logits = net.features(images)
        low, high = net.anchors[:, :2] - net.anchors[:, 2:] / 2, net.anchors[:, :2] + net.anchors[:, 2:] / 2
        anchors = torch.cat([low, high], dim=1).expand(2, -1, -1)
        trained = kept_boxes(recipe.decoded(offsets, anchors), logits[..., 0], 64, recipe.PROPOSALS, 0.6)
        _, deployed, _, _ = ops.decode_nms_anchors(
            offsets, logits, net.anchors, center_variance=0.1, size_variance=0.2, sigmoid=1, score_threshold=0.0,
            iou_threshold=0.6, top_k=64, max_detections=recipe.PROPOSALS,
        )  # fmt: skip
        torch.testing.assert_close(trained, deployed, atol=1e-3, rtol=0)
        regions = deployed.clamp(0, recipe.SIZE)
        which = torch.arange(2).repeat_interleave(recipe.PROPOSALS)
        read = ops.roi_align_fpn2(
            fine, coarse, regions.reshape(-1, 4), which, output_height=7, output_width=7, **recipe.PYRAMID
        )
        torch.testing.assert_close(recipe.sampled((fine, coarse), regions, 7), read, atol=1e-5, rtol=0)


def test_a_box_is_moved_there_and_back() -> None:
    recipe = loaded("mask_rcnn")
    boxes = torch.tensor([[10.0, 10, 30, 50], [0, 0, 20, 20]])
    targets = torch.tensor([[12.0, 8, 28, 55], [5, 5, 30, 22]])
    torch.testing.assert_close(recipe.decoded(recipe.encoded(targets, boxes), boxes), targets)


@pytest.mark.parametrize(
    ("name", "metric", "least"), [("yolo_digits", "mAP50", 0.96), ("mask_rcnn", "mask_mAP50", 0.9)]
)
def test_detectors_find_the_digits_of_scenes_never_trained_on(name: str, metric: str, least: float) -> None:
    recipe = loaded(name)
    net = recipe.build()

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {k: v.numpy() for k, v in zip(recipe.SPEC.outputs, net(torch.from_numpy(feed["image"])))}

    assert recipe.evaluate(run, 60)[metric] >= least


@pytest.mark.parametrize("name", ["yolo_digits", "mask_rcnn"])
def test_a_step_of_training_goes_down(name: str) -> None:
    recipe = loaded(name)
    torch.manual_seed(0)
    net = recipe.Yolo() if name == "yolo_digits" else recipe.MaskRCNN()
    images, truth = recipe.scenes(4, 2)
    labels = [truth.boxes, truth.classes] + ([truth.masks] if name == "mask_rcnn" else [])
    data = [torch.as_tensor(a) for a in (images, *labels)]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        value = recipe.loss(net, *data)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_the_picture_of_a_file_is_what_training_saw(tmp_path: Path) -> None:
    from PIL import Image

    from edgekit.preprocess import tensor_from_file

    recipe = loaded("yolo_digits")
    images, truth = recipe.scenes(2, 3)
    Image.fromarray(truth.images[1]).save(tmp_path / "scene.png")
    np.testing.assert_array_equal(tensor_from_file(tmp_path / "scene.png", recipe.SPEC.preprocess["image"]), images[1:])
