"""The function body of roi_align. Not with ONNX's RoiAlign, which TensorRT-RTX has no plugin for: with Gather, from a
table of the pixels of all maps, so that each region is read from its own level only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugins_trt.body import Body


def write(b: Body, maps: Sequence[str]) -> None:
    """The whole function. Sizes in comments: R regions, C channels, P x Q bins, S samples of a bin's side."""
    from plugins_trt.roi_align import NUDGE

    images, channels = b.size(maps[0], 0), b.size(maps[0], 1)
    heights, widths, tables, starts = [], [], [], [b.constant([0])]
    for name in maps:
        heights.append(b.size(name, 2))
        widths.append(b.size(name, 3))
        pixels = b.op("Transpose", b.cast(name, "float32"), perm=[0, 2, 3, 1])
        tables.append(b.op("Reshape", pixels, b.op("Concat", b.constant([-1]), channels, axis=0)))
        area = b.op("Mul", b.op("Mul", heights[-1], widths[-1]), images)
        starts.append(b.op("Add", starts[-1], area))
    left, top, right, bottom = b.op("Split", b.cast("rois", "float32"), axis=1, num_outputs=4, outputs=4)  # [R, 1]
    area = b.op("Mul", b.op("Sub", right, left), b.op("Sub", bottom, top))
    level = b.cast(b.op("Greater", area, area), "int64")
    scales = b.op("Reshape", b.attribute("spatial_scale"), b.constant([1])) if len(maps) == 1 else ""
    if len(maps) > 1:
        scales = b.attribute("spatial_scales")
        first = b.cast(b.op("Sub", b.attribute("first_level"), b.attribute("canonical_level")), "float32")
        scale = b.attribute("canonical_scale")
        for above in range(1, len(maps)):
            power = b.op("Pow", b.constant(4.0), b.op("Add", first, b.constant(above - NUDGE)))
            least = b.op("Mul", b.op("Mul", scale, scale), power)
            level = b.op("Add", level, b.cast(b.op("GreaterOrEqual", area, least), "int64"))

    def of_level(values: Sequence[str]) -> str:
        """[R, 1]."""
        return str(b.op("Gather", b.op("Concat", *values, axis=0), level, axis=0))

    height, width, start = of_level(heights), of_level(widths), of_level(starts[:-1])
    scale = b.op("Gather", scales, level, axis=0)
    rows = _axis(b, (top, bottom), scale, height, "output_height")
    columns = _axis(b, (left, right), scale, width, "output_width")
    image = b.op("Unsqueeze", b.cast("batch_indices", "int64"), b.constant([1]))
    last = b.op("Sub", images, b.constant([1]))
    held = b.op("Max", b.op("Min", image, last), b.constant([0]))
    known = b.cast(b.op("Equal", image, held), "float32")
    start = b.op("Add", start, b.op("Mul", b.op("Mul", held, height), width))
    # [R, P, 2 S, 1, 1] and [R, 1, 1, Q, 2 S]
    down = b.op("Unsqueeze", rows.taps, b.constant([3, 4]))
    across = b.op("Unsqueeze", columns.taps, b.constant([1, 2]))
    start, width, known = (b.op("Reshape", value, b.constant([-1, 1, 1, 1, 1])) for value in (start, width, known))
    index = b.op("Add", b.op("Add", start, b.op("Mul", down, width)), across)
    of_rows = b.op("Mul", b.op("Unsqueeze", rows.weights, b.constant([3, 4])), known)
    weights = b.op("Mul", of_rows, b.op("Unsqueeze", columns.weights, b.constant([1, 2])))
    weights = b.op("Unsqueeze", weights, b.constant([5]))
    found = b.op("Gather", b.op("Concat", *tables, axis=0), index, axis=0)  # [R, P, 2 S, Q, 2 S, C]
    zero = b.constant(0.0)
    counted = b.op("Where", b.op("Equal", weights, zero), zero, b.op("Mul", found, weights))
    summed = b.op("ReduceSum", counted, b.constant([2, 4]), keepdims=0)
    samples = b.op("Max", b.op("Mul", rows.samples, columns.samples), b.constant(1.0))
    mean = b.op("Div", summed, b.op("Reshape", samples, b.constant([-1, 1, 1, 1])))
    b.returns(b.op("CastLike", b.op("Transpose", mean, perm=[0, 3, 1, 2]), maps[0]))


@dataclass(frozen=True)
class _Axis:
    """`taps` (int64) and `weights` [R, bins, 2 S]; `samples` [R, 1], float32. Names of tensors."""

    taps: str
    weights: str
    samples: str


def _range(b: Body, size: str) -> str:
    """[0.0, 1.0, ..., size - 1]."""
    zero, one = (b.op("Constant", value_int=value) for value in (0, 1))
    return b.cast(b.op("Range", zero, size, one), "float32")


def _axis(b: Body, ends: tuple[str, str], scale: str, size: str, bins: str) -> _Axis:
    """One axis: see `roi_align._taps`."""
    zero, one = b.constant(0.0), b.constant(1.0)
    aligned = b.op("Equal", b.attribute("aligned"), b.constant(1))
    offset = b.op("Where", aligned, b.constant(0.5), zero)
    start, end = (b.op("Sub", b.op("Mul", value, scale), offset) for value in ends)
    length = b.op("Sub", end, start)
    length = b.op("Where", aligned, length, b.op("Max", length, one))
    bin_size = b.op("Div", length, b.cast(b.attribute(bins), "float32"))
    given, most = b.attribute("sampling_ratio"), b.attribute("most_samples")
    fixed = b.op("Greater", given, b.op("Constant", value_int=0))
    by_size = b.op("Min", b.op("Max", b.op("Ceil", bin_size), zero), b.cast(most, "float32"))
    by_size = b.op("Where", b.op("IsNaN", by_size), zero, by_size)
    samples = b.op("Where", fixed, b.cast(given, "float32"), by_size)
    which = b.op("Unsqueeze", _range(b, b.attribute(bins)), b.constant([0, 2]))
    sample = b.op("Unsqueeze", _range(b, b.op("Where", fixed, given, most)), b.constant([0, 1]))
    # [R, 1] becomes [R, 1, 1]
    start, wide, count = (b.op("Unsqueeze", value, b.constant([2])) for value in (start, bin_size, samples))
    last = b.op("Sub", b.op("Unsqueeze", size, b.constant([2])), b.constant(1))
    into = b.op("Div", b.op("Mul", b.op("Add", sample, b.constant(0.5)), wide), count)
    at = b.op("Add", b.op("Add", start, b.op("Mul", which, wide)), into)
    most_at = b.cast(b.op("Add", last, b.constant(1)), "float32")
    inside = b.op("And", b.op("GreaterOrEqual", at, b.constant(-1.0)), b.op("LessOrEqual", at, most_at))
    inside = b.op("And", inside, b.op("Less", sample, count))
    held = b.op("Max", b.op("Where", inside, at, zero), zero)
    low = b.op("Min", b.cast(b.op("Floor", held), "int64"), last)
    high = b.op("Min", b.op("Add", low, b.constant(1)), last)
    beyond = b.op("Where", b.op("Less", low, last), b.op("Sub", held, b.cast(low, "float32")), zero)
    counts = b.cast(inside, "float32")
    weights = b.op("Concat", b.op("Mul", b.op("Sub", one, beyond), counts), b.op("Mul", beyond, counts), axis=2)
    return _Axis(b.op("Concat", low, high, axis=2), weights, samples)
