"""decode_nms against the same steps in PyTorch, as detectors have them: best class, threshold, top k, suppression.

The suppression is a matrix of overlaps and rounds until nothing changes (each asks the GPU, as the boxes that are found
decide it). Where torchvision is installed its own kernel for that step is measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks.plugin_cases.case import Case, Way
from plugins_trt.decode_nms import DecodeNms, Kind
from plugins_trt.operator import Call

COMPOSED = "PyTorch, eager"
TIMES = 3.0
MOST_S = 60e-6


def cases() -> list[Case]:
    """What is asked for (8400 candidates under 60 us, three times as fast as PyTorch), then a head as YOLO gives it,
    a batch, everything above the threshold, and SSD300."""
    return [
        _case("boxes", (1, 8400, 80), "8400 candidates", asked=True),
        _case("head", (1, 8400, 80), "8400 candidates", asked=True),
        _case("head", (8, 8400, 80), "8 images of 8400 candidates"),
        _case("boxes", (1, 8400, 80), "8400 candidates, all pass", score_threshold=0.0),
        _case("anchors", (1, 8732, 21), "SSD300, several classes a box", multi_label=1, background=1),
    ]


def _case(kind: Kind, size: tuple[int, int, int], label: str, *, asked: bool = False, **attributes: Any) -> Case:
    operator = DecodeNms(kind)
    call = operator.example(size, "float16", **attributes)
    return Case(
        operator, label, call, rivals=lambda torch, tensors: _rivals(torch, tensors, call),
        asked=(COMPOSED, TIMES) if asked else None, asked_s=MOST_S if asked else None,
    )  # fmt: skip


def composed(torch: Any, call: Call, tensors: Sequence[Any], suppressed: Callable[..., Any]) -> list[Any]:
    """Count, boxes, scores and classes of each image; `suppressed(torch, boxes, scores, labels, limit)` gives the ranks
    that survive. For scores that are no logits."""
    kind = call.operator.removeprefix("decode_nms").removeprefix("_")
    given = [tensor.float() for tensor in tensors]
    boxes, scores = (given[0][:, :4].mT, given[0][:, 4:].mT) if kind == "head" else given[:2]
    if kind == "anchors":
        place, extent = given[2].split(2, dim=1)
        low, high = boxes.split(2, dim=2)
        low = low * call.number("center_variance") * extent + place
        boxes = torch.cat([low, (high * call.number("size_variance")).exp() * extent], dim=2)
    low, high = boxes.split(2, dim=2)
    if kind == "anchors" or call.integer("center"):
        low, high = low - high / 2, low + high / 2
    boxes = torch.cat([low, high], dim=2)
    if call.integer("background"):
        scores = torch.cat([torch.zeros_like(scores[..., :1]), scores[..., 1:]], dim=2)
    if call.integer("multi_label"):
        values, labels = scores.flatten(1), torch.arange(scores.shape[2], device=scores.device).repeat(scores.shape[1])
        labels = labels.expand_as(values)
    else:
        values, labels = scores.max(dim=2)
    out = []
    for image in range(len(values)):
        passed = values[image] > call.number("score_threshold")
        best, at = values[image][passed].sort(descending=True, stable=True)
        best, at = best[: call.integer("top_k")], passed.nonzero()[:, 0][at[: call.integer("top_k")]]
        of_box = at // scores.shape[2] if call.integer("multi_label") else at
        found, label = boxes[image][of_box], labels[image][at]
        chosen = suppressed(torch, found, best, label, call.number("iou_threshold"))[: call.integer("max_detections")]
        out.append((len(chosen), found[chosen], best[chosen], label[chosen]))
    return out


def by_matrix(torch: Any, boxes: Any, scores: Any, labels: Any, limit: float) -> Any:
    """Non-maximum suppression of sorted boxes in PyTorch alone: the ranks that survive."""
    low, high = boxes.split(2, dim=1)
    area = (high - low).prod(dim=1)
    meet = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(dim=2)
    over = meet > limit * (area[:, None] + area - meet)
    suppresses = (over & (labels[:, None] == labels)).triu(diagonal=1).float()
    standing = torch.ones(1, len(boxes), device=boxes.device)
    while True:
        now = (standing @ suppresses == 0).float()
        if torch.equal(now, standing):
            return standing[0].nonzero()[:, 0]
        standing = now


def by_torchvision(torch: Any, boxes: Any, scores: Any, labels: Any, limit: float) -> Any:
    """torchvision's own kernel."""
    import torchvision

    return torchvision.ops.batched_nms(boxes, scores, labels, limit)


def _rivals(torch: Any, tensors: Sequence[Any], call: Call) -> Mapping[str, Way]:
    compiled = torch.compile(composed, dynamic=True)
    ways = {
        COMPOSED: Way(lambda: composed(torch, call, tensors, by_matrix), graph=False),
        "torch.compile of it": Way(lambda: compiled(torch, call, tensors, by_matrix), graph=False),
    }
    if find_spec("torchvision") is not None:
        ways["with torchvision's batched_nms"] = Way(
            lambda: composed(torch, call, tensors, by_torchvision), graph=False
        )
    return ways
