"""roi_align against grid_sample and avg_pool2d in PyTorch, and torchvision's own kernel where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks.plugin_cases.case import Case, Way
from plugins_trt.operator import Call
from plugins_trt.roi_align import RoiAlign

SHARE = 0.8
"""Of the copy bandwidth, asked for where regions, maps and results fill no cache."""


def cases() -> list[Case]:
    """A Faster R-CNN's second stage (which the share is asked for), a Mask R-CNN's third, one map alone, FP32."""
    return [
        _case(4, 1000, 7, asked=SHARE),
        _case(4, 100, 14),
        _case(1, 1000, 7, asked=SHARE),
        _case(4, 1000, 7, dtype="float32"),
    ]


def _case(levels: int, regions: int, bins: int, *, dtype: str = "float16", asked: float | None = None) -> Case:
    operator = RoiAlign(levels)
    call = operator.example((1, 256, 200, 336), regions, dtype, output_height=bins, output_width=bins)
    label = f"{regions} regions, {bins} x {bins}" + ", FP32" * (dtype == "float32")
    return Case(operator, label, call, rivals=lambda torch, tensors: _rivals(torch, tensors, call), asked_share=asked)


def composed(torch: Any, call: Call, tensors: Sequence[Any]) -> Any:
    """The same of PyTorch's operators, for one image, a fixed number of samples, and regions on the image."""
    *maps, rois, _ = tensors
    operator = RoiAlign(len(maps))
    area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    level = sum((area >= least).long() for least in operator.level_areas(call)) if len(maps) > 1 else None
    bins = call.integer("output_height"), call.integer("output_width")
    out = maps[0].new_empty(len(rois), maps[0].shape[1], *bins)
    for index, (given, scale) in enumerate(zip(maps, operator.scales(call))):
        chosen = slice(None) if level is None else (level == index).nonzero()[:, 0]
        if len(rois[chosen]):
            out[chosen] = _of_map(torch, call, given, rois[chosen].float() * scale, bins)
    return out


def _of_map(torch: Any, call: Call, given: Any, regions: Any, bins: tuple[int, int]) -> Any:
    samples = call.integer("sampling_ratio")
    offset = 0.5 if call.integer("aligned") else 0.0
    axes = []
    for axis, (count, size) in enumerate(zip(bins, given.shape[2:])):
        start, end = regions[:, 1 - axis] - offset, regions[:, 3 - axis] - offset
        length = end - start if call.integer("aligned") else (end - start).clamp(min=1)
        step = (torch.arange(count * samples, device=regions.device) + 0.5) / (count * samples)
        axes.append(((start[:, None] + step * length[:, None]) * 2 + 1) / size - 1)
    rows, columns = axes
    y, x = torch.broadcast_tensors(rows[:, :, None], columns[:, None, :])
    grid = torch.stack([x, y], dim=3).flatten(0, 1)[None].to(given.dtype)
    found = torch.nn.functional.grid_sample(given, grid, padding_mode="border", align_corners=False)
    pooled = torch.nn.functional.avg_pool2d(found, samples)
    return pooled[0].unflatten(1, (-1, bins[0])).movedim(0, 1)


def _by_torchvision(call: Call, tensors: Sequence[Any]) -> Any:
    """torchvision's own kernel, on the first map for all regions: it has no levels in one call."""
    import torchvision

    x, *_, rois, at = tensors
    boxes = [rois[at == image].to(x.dtype) for image in range(len(x))]
    size = call.integer("output_height"), call.integer("output_width")
    scale = RoiAlign(len(tensors) - 2).scales(call)[0]
    return torchvision.ops.roi_align(
        x, boxes, size, scale, call.integer("sampling_ratio"), bool(call.integer("aligned"))
    )


def _rivals(torch: Any, tensors: Sequence[Any], call: Call) -> Mapping[str, Way]:
    compiled = torch.compile(composed, dynamic=True)
    ways = {
        "PyTorch, eager": Way(lambda: composed(torch, call, tensors), graph=False),
        "torch.compile of it": Way(lambda: compiled(torch, call, tensors), graph=False),
    }
    if find_spec("torchvision") is not None and len(tensors) == 3:
        ways["torchvision's roi_align"] = Way(lambda: _by_torchvision(call, tensors), graph=False)
    return ways
