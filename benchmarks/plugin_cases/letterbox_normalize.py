"""letterbox_normalize against interpolate, pad and arithmetic in PyTorch, on FP32 as its antialiasing needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.plugin_cases.case import Case, Way
from plugins_trt.letterbox_normalize import LetterboxNormalize, colour_matrix
from plugins_trt.operator import Call

SHARE = 0.8
"""Of the copy bandwidth, asked for at sizes that no cache holds."""


def cases() -> list[Case]:
    """Eight 4K cameras to a detector (which the share is asked for), each way to filter; then smaller ones."""
    return [
        _case((8, 2160, 3840), nv12=False, asked=SHARE),
        _case((8, 2160, 3840), nv12=False, asked=SHARE, antialias=0),
        _case((8, 2160, 3840), nv12=True, asked=SHARE),
        _case((1, 1080, 1920), nv12=False),
        _case((1, 1080, 1920), nv12=True),
        _case((1, 480, 640), nv12=False),
    ]


def _case(size: tuple[int, int, int], *, nv12: bool, asked: float | None = None, antialias: int = 1) -> Case:
    operator = LetterboxNormalize(nv12=nv12)
    call = operator.example(size, height=640, width=640, to=10, pad=114.0, antialias=antialias)
    batch, height, width = size
    label = f"{batch} x {width} x {height} to 640 x 640" + ", two taps" * (not antialias)
    return Case(operator, label, call, rivals=lambda torch, tensors: _rivals(torch, tensors, call), asked_share=asked)


def composed(torch: Any, frame: Any, call: Call) -> Any:
    """The same of PyTorch's operators."""
    functional = torch.nn.functional
    operator = LetterboxNormalize(nv12=call.operator.endswith("nv12"))
    rows, columns = operator.axes(call)
    height, width = call.integer("height"), call.integer("width")

    def resized(planes: Any) -> Any:
        size = rows.content, columns.content
        return functional.interpolate(planes.float(), size, mode="bilinear", antialias=bool(call.integer("antialias")))

    if operator.nv12:
        black, scale, r_v, g_u, g_v, b_u = colour_matrix(call)
        luma = (resized(frame[:, None, : rows.inside]) - black) * scale
        pairs = frame[:, rows.inside :].reshape(len(frame), rows.inside // 2, columns.inside // 2, 2)
        u, v = resized(pairs.permute(0, 3, 1, 2)).sub(128).split(1, dim=1)
        pixels = torch.cat([luma + r_v * v, luma + g_u * u + g_v * v, luma + b_u * u], dim=1).clamp(0, 255)
    else:
        pixels = resized(frame.permute(0, 3, 1, 2))
    left, top = columns.start, rows.start
    padding = (left, width - columns.content - left, top, height - rows.content - top)
    padded = functional.pad(pixels, padding, value=call.number("pad"))
    return (padded * call.number("scale")).to(torch.float16 if call.integer("to") == 10 else torch.float32)


def _rivals(torch: Any, tensors: Sequence[Any], call: Call) -> Mapping[str, Way]:
    (frame,) = tensors
    compiled = torch.compile(composed)
    return {
        "PyTorch, graph": Way(lambda: composed(torch, frame, call), graph=True),
        "PyTorch, eager": Way(lambda: composed(torch, frame, call), graph=False),
        "torch.compile of it": Way(lambda: compiled(torch, frame, call), graph=False),
    }
