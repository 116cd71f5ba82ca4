"""The function body of letterbox_normalize: resampling as products with matrices that are made of the sizes.

Resize, its crop and a Pad with sizes that are known only at run time are where runtimes part; a matrix product is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugins_trt.body import Body, Of


@dataclass(frozen=True)
class _Axis:
    """`weights` [out, inside] in float32, and `covered` [out]: where the content is. Names of tensors."""

    weights: str
    covered: str


def write(b: Body, *, nv12: bool) -> None:
    """The whole function, for NHWC frames or for NV12."""
    target = [b.op("Reshape", b.attribute(name), b.constant([1])) for name in ("height", "width")]
    frame = b.cast("frame", "float32")  # at once: TensorRT takes UINT8 into a Cast, and nowhere else
    signed = b.op("Less", frame, b.constant(0.0))  # bytes that were given as int8
    frame = b.op("Where", signed, b.op("Add", frame, b.constant(256.0)), frame)
    stored, width = b.size("frame", 1), b.size("frame", 2)
    height = b.op("Div", b.op("Mul", stored, b.constant([2])), b.constant([3])) if nv12 else stored
    inside = [height, width]
    content = _content(b, inside, target)
    rows, columns = (_axis(b, *sizes) for sizes in zip(inside, content, target))
    if nv12:
        two = b.constant([2])
        halves = [b.op("Div", size, two) for size in inside]
        chroma_rows, chroma_columns = (_axis(b, *sizes) for sizes in zip(halves, content, target))
        one, zero = b.constant([1]), b.constant([0])
        luma = b.op("Unsqueeze", b.op("Slice", frame, zero, height, one), one)
        pairs = b.op("Concat", b.size("frame", 0), *halves, two, axis=0)
        chroma = b.op("Reshape", b.op("Slice", frame, height, stored, one), pairs)
        y = _resampled(b, luma, rows, columns)
        u_and_v = _resampled(b, b.op("Transpose", chroma, perm=[0, 3, 1, 2]), chroma_rows, chroma_columns)
        pixels = _rgb(b, y, u_and_v)
    else:
        colours = b.op("Slice", frame, b.constant([0]), b.constant([3]), b.constant([3]))
        pixels = _resampled(b, b.op("Transpose", colours, perm=[0, 3, 1, 2]), rows, columns)
    order = _range(b, b.size(pixels, 1))
    reverse = b.op("Sub", b.op("Sub", b.size(pixels, 1), b.constant([1])), order)
    swap = b.op("Equal", b.attribute("swap"), b.constant(1))
    pixels = b.op("Gather", pixels, b.op("Where", swap, reverse, order), axis=1)
    covered = b.op(
        "And",
        b.op("Reshape", rows.covered, b.constant([-1, 1])),
        b.op("Reshape", columns.covered, b.constant([1, -1])),
    )
    padded = b.op("Where", covered, pixels, b.attribute("pad"))
    mean, std = (b.op("Reshape", b.attribute(name), b.constant([1, -1, 1, 1])) for name in ("mean", "std"))
    y = b.op("Div", b.op("Sub", b.op("Mul", padded, b.attribute("scale")), mean), std)
    b.returns(b.op("Cast", y, to=Of("to")))


def _range(b: Body, size: str) -> str:
    """[0, 1, ..., size - 1]."""
    zero, one = (b.op("Constant", value_int=value) for value in (0, 1))
    return str(b.op("Range", zero, b.op("Squeeze", size), one))


def _content(b: Body, inside: list[str], target: list[str]) -> list[str]:
    """Height and width of the content: see `letterbox_normalize.content_size`."""
    (h, w), (height, width) = inside, target
    wide = b.op("LessOrEqual", b.op("Mul", width, h), b.op("Mul", height, w))
    part, whole = b.op("Where", wide, width, height), b.op("Where", wide, w, h)
    keep, one, two = b.op("Equal", b.attribute("keep_aspect"), b.constant(1)), b.constant([1]), b.constant([2])
    out = []
    for side, full in zip(inside, target):
        product = b.op("Mul", side, part)
        below = b.op("Div", product, whole)
        twice_rest = b.op("Mul", b.op("Sub", product, b.op("Mul", below, whole)), two)
        odd = b.op("Sub", below, b.op("Mul", b.op("Div", below, two), two))
        up = b.op("Greater", b.op("Add", twice_rest, odd), whole)
        scaled = b.op("Max", b.op("Add", below, b.op("Where", up, one, b.constant([0]))), one)
        out.append(b.op("Where", keep, scaled, full))
    return out


def _axis(b: Body, inside: str, content: str, target: str) -> _Axis:
    """The weights of one axis: see `letterbox_normalize.Axis`."""
    zero, one, two = b.constant([0]), b.constant([1]), b.constant([2])
    start = b.op("Mul", b.op("Div", b.op("Sub", target, content), two), b.attribute("centered"))
    at = b.op("Sub", _range(b, target), start)
    covered = b.op("And", b.op("GreaterOrEqual", at, zero), b.op("Less", at, content))
    # Rows outside of the content are not used; they get the weights of its edge so that none divides by zero.
    at = b.op("Max", b.op("Min", at, b.op("Sub", content, one)), zero)
    centre = b.op("Mul", b.op("Add", b.op("Mul", at, two), one), inside)
    tap = b.op("Mul", b.op("Add", b.op("Mul", _range(b, inside), two), one), content)
    tap, centre = b.op("Reshape", tap, b.constant([1, -1])), b.op("Reshape", centre, b.constant([-1, 1]))
    away = b.op("Abs", b.op("Sub", tap, centre))
    reach = b.op("Mul", b.op("Max", content, b.op("Mul", inside, b.attribute("antialias"))), two)
    weights = b.cast(b.op("Max", b.op("Sub", reach, away), zero), "float32")
    return _Axis(b.op("Div", weights, b.op("ReduceSum", weights, b.constant([1]), keepdims=1)), covered)


def _resampled(b: Body, planes: str, rows: _Axis, columns: _Axis) -> str:
    blended = b.op("MatMul", rows.weights, planes)
    return str(b.op("MatMul", blended, b.op("Transpose", columns.weights, perm=[1, 0])))


def _rgb(b: Body, luma: str, chroma: str) -> str:
    """See `letterbox_normalize.colour_matrix`."""
    matrix = b.attribute("matrix")

    def of_standard(values: tuple[float, float, float]) -> str:
        """The value for BT.601, BT.709 or BT.2020."""
        later = b.op("Where", b.op("Equal", matrix, b.constant(709)), b.constant(values[1]), b.constant(values[2]))
        return str(b.op("Where", b.op("Equal", matrix, b.constant(601)), b.constant(values[0]), later))

    from plugins_trt.letterbox_normalize import LUMA

    red, blue = (of_standard((LUMA[601][i], LUMA[709][i], LUMA[2020][i])) for i in (0, 1))
    full = b.op("Equal", b.attribute("full_range"), b.constant(1))
    black, luma_scale, chroma_scale = (
        b.op("Where", full, b.constant(a), b.constant(z)) for a, z in ((0.0, 16.0), (1.0, 255 / 219), (1.0, 255 / 224))
    )
    one, two = b.constant(1.0), b.constant(2.0)
    green = b.op("Sub", b.op("Sub", one, red), blue)
    y = b.op("Mul", b.op("Sub", luma, black), luma_scale)
    shifted = b.op("Mul", b.op("Mul", b.op("Sub", chroma, b.constant(128.0)), chroma_scale), two)
    u, v = b.op("Split", shifted, axis=1, num_outputs=2, outputs=2)
    u, v = b.op("Mul", u, b.op("Sub", one, blue)), b.op("Mul", v, b.op("Sub", one, red))
    of_green = b.op("Div", b.op("Add", b.op("Mul", u, blue), b.op("Mul", v, red)), green)
    rgb = b.op("Concat", b.op("Add", y, v), b.op("Sub", y, of_green), b.op("Add", y, u), axis=1)
    return str(b.op("Clip", rgb, b.constant(0.0), b.constant(255.0)))
