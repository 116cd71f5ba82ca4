"""decode_nms in numpy: the rules of `plugins_trt.decode_nms`, one image and one survivor at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugins_trt.operator import Call

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def detections(call: Call, kind: str, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
    """count [N], boxes [N, max, 4], scores [N, max], classes [N, max]."""
    import numpy as np

    given = [array.astype(np.float32) for array in arrays]
    if kind == "head":
        head = given[0].transpose(0, 2, 1)
        boxes, scores = head[..., :4], head[..., 4:]
    else:
        boxes, scores = given[:2]
    with np.errstate(all="ignore"):
        if kind == "anchors":
            boxes = _from_anchors(boxes, given[2], call)
        corners = _corners(boxes, centre=kind == "anchors" or bool(call.integer("center")))
        most = call.integer("max_detections")
        found = [_of_image(call, *image) for image in zip(corners, scores)]
    out_boxes = np.zeros((len(found), most, 4), np.float32)
    out_scores = np.zeros((len(found), most), np.float32)
    classes = np.full((len(found), most), -1, np.int32)
    for row, (kept, score, label) in enumerate(found):
        out_boxes[row, : len(kept)], out_scores[row, : len(kept)], classes[row, : len(kept)] = kept, score, label
    return np.array([len(kept) for kept, _, _ in found], np.int32), out_boxes, out_scores, classes


def _from_anchors(offsets: NDArray[Any], anchors: NDArray[Any], call: Call) -> NDArray[Any]:
    import numpy as np

    centre, size = (np.float32(call.number(name)) for name in ("center_variance", "size_variance"))
    centres = offsets[..., :2] * centre * anchors[:, 2:] + anchors[:, :2]
    return np.concatenate([centres, np.exp(offsets[..., 2:] * size) * anchors[:, 2:]], axis=-1)


def _corners(boxes: NDArray[Any], *, centre: bool) -> NDArray[Any]:
    """Left, top, right, bottom; all NaN where one is not finite."""
    import numpy as np

    low, high = boxes[..., :2], boxes[..., 2:]
    if centre:
        half = high * np.float32(0.5)
        low, high = low - half, low + half
    fine = np.isfinite(low).all(-1) & np.isfinite(high).all(-1)
    corners = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=-1)
    return np.where(fine[..., None], corners, np.float32(np.nan))


def _of_image(call: Call, corners: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Boxes, scores and classes of the survivors of one image."""
    import numpy as np

    from plugins_trt.decode_nms import LOWEST

    sigmoid = call.integer("sigmoid")
    threshold = np.float32(call.number("score_threshold"))
    if sigmoid:
        threshold = np.log(threshold / (np.float32(1) - threshold)) if threshold else np.float32(LOWEST)
    scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    scores[:, : call.integer("background")] = -np.inf
    candidates = (scores > threshold) & np.isfinite(corners).all(-1)[:, None]
    if not call.integer("multi_label"):
        candidates &= np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    at, label = np.nonzero(candidates)  # by candidate, then class
    order = np.argsort(-scores[at, label], kind="stable")[: call.integer("top_k")]
    at, label = at[order], label[order]
    boxes, left = corners[at], np.ones(len(at), bool)
    survivors: list[int] = []
    for rank in range(len(at)):
        if left[rank] and len(survivors) < call.integer("max_detections"):
            survivors.append(rank)
            same = label == label[rank] if not call.integer("class_agnostic") else np.ones_like(left)
            left &= ~(same & (overlaps(boxes[rank], boxes) > np.float32(call.number("iou_threshold"))))
    values = scores[at, label][survivors]
    return boxes[survivors], 1 / (1 + np.exp(-values)) if sigmoid else values, label[survivors]


def overlaps(box: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union of one box with each of `boxes`, in float32; 0 where they do not meet."""
    import numpy as np

    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], np.float32(0))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    own = (box[2] - box[0]) * (box[3] - box[1])
    out = np.zeros(len(boxes), np.float32)
    return np.asarray(np.divide(both, own + areas - both, out=out, where=both > 0))
