"""A camera's frame to a network's input in one pass: resize, letterbox, normalise, uint8 to FP16 or FP32 planes.

Geometry, for a frame of w x h pixels and a target of W x H: the content is c_w x c_h pixels, the frame's size times
min(W / w, H / h), each side rounded to the nearest integer (ties to even) and at least 1. It starts at pixel
((W - c_w) // 2, (H - c_h) // 2); with `centered=0` at (0, 0), and with `keep_aspect=0` it fills the target.

Resampling is by the triangle filter, as Pillow's BILINEAR: target pixel x has its centre at (x + 1/2) w / c_w in the
frame, and frame pixel j weighs max(0, 1 - |j + 1/2 - centre| / s), divided by the sum of the weights. With `antialias`
s = max(1, w / c_w), so that no pixel of the frame is skipped when it shrinks; without, s = 1: two pixels, as OpenCV's
INTER_LINEAR. Multiplied by 2 c_w everything in it is an integer, so that the kernel, the function body and the
reference use the same weights to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from plugins_trt.body import Body
from plugins_trt.dims import Dim, ceil_div, differ, maximum, minimum
from plugins_trt.operator import C_TYPES, Attribute, Call, Cost, KernelPlan, Operator, Port, Scalar, TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SIDE = 16384
"""Pixels of a side, of frame and target: with more, the integers of the filter would pass 31 bits."""

DTYPES = {1: "float32", 10: "float16"}
"""What the attribute `to` can be: ONNX's numbers of dtypes."""

LUMA = {601: (0.299, 0.114), 709: (0.2126, 0.0722), 2020: (0.2627, 0.0593)}
"""The weights of red and blue in the luma of ITU-R BT.601, BT.709 and BT.2020."""

_THREADS = 256
_SHARED_BYTES = 24 * 1024
_TACTICS = ((8, 4), (4, 4), (8, 8), (16, 4), (16, 16))
"""Bytes that one thread loads from a row at a time, and that it stores to a plane at a time."""


@dataclass(frozen=True)
class Axis:
    """One axis of the resampling: `inside` pixels of the frame become `content` pixels, which start at `start`."""

    inside: int
    content: int
    start: int
    antialias: bool

    @property
    def radius(self) -> int:
        """The filter's half width, in units of 1 / (2 content) pixels of the frame."""
        return 2 * max(self.content, self.inside if self.antialias else 0)

    def taps(self, at: int) -> tuple[int, int]:
        """The first and last pixel of the frame with a weight for pixel `at` of the content."""
        centre = (2 * at + 1) * self.inside - self.content
        before = centre - self.radius
        first = 0 if before < 0 else before // (2 * self.content) + 1
        return first, min(self.inside - 1, (centre + self.radius - 1) // (2 * self.content))

    def weights(self) -> NDArray[np.float64]:
        """[content, inside]; each row sums to 1."""
        import numpy as np

        pixel, tap = np.arange(self.content)[:, None], np.arange(self.inside)[None]
        away = np.abs((2 * tap + 1) * self.content - (2 * pixel + 1) * self.inside)
        weights = np.maximum(0, self.radius - away).astype(np.float64)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def content_size(frame: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a frame of (height, width) once it fits into a target of (height, width)."""
    ratio = min(Fraction(whole, side) for side, whole in zip(frame, target))
    height, width = (max(1, round(side * ratio)) for side in frame)
    return height, width


class LetterboxNormalize(Operator):
    """`(pixel * scale - mean) / std` of a resized and letterboxed frame, as planes.

    The frame is NHWC with 1, 3 or 4 channels (the fourth is dropped), or NV12: rows of luma, then half as many rows of
    interleaved chroma, which is taken to lie between its four pixels.

    Frames are uint8, or the same bytes as int8: TensorRT gives plugins no uint8 (see `plugins_trt.nodes`).
    """

    kernel_file = "letterbox_normalize.cu"
    outputs = ("y",)

    def __init__(self, *, nv12: bool) -> None:
        self.nv12 = nv12
        self.name = "letterbox_normalize" + "_nv12" * nv12
        self.summary = ("NV12" if nv12 else "uint8 NHWC") + " frame to a resized, letterboxed, normalised NCHW input"
        doc = "[N, 3/2 height, width]" if nv12 else "[N, height, width, channels]"
        self.inputs = (Port("frame", ("uint8", "int8"), ranks=(3 if nv12 else 4,), doc=doc),)
        self.attributes = (
            Attribute("height", "int", None, "pixels of the output", minimum=1, maximum=MAX_SIDE),
            Attribute("width", "int", None, "pixels of the output", minimum=1, maximum=MAX_SIDE),
            Attribute("to", "int", 1, "the output's dtype as ONNX numbers it: 1 FP32, 10 FP16", choices=tuple(DTYPES)),
            Attribute("scale", "float", 1 / 255, "factor on pixels, before mean and std"),
            Attribute("mean", "floats", (0.0,), "one, or one for each channel of the output"),
            Attribute("std", "floats", (1.0,), "one, or one for each channel of the output"),
            Attribute("pad", "float", 0.0, "pixel value around the content", minimum=0, maximum=255),
            Attribute("antialias", "int", 1, "1: average over the pixels that a shrunk one covers", choices=(0, 1)),
            Attribute("keep_aspect", "int", 1, "0: stretch to the whole output", choices=(0, 1)),
            Attribute(
                "centered", "int", 1, "0: content at the top left, padding at the right and bottom", choices=(0, 1)
            ),
            Attribute("swap", "int", 0, "1: the order of the channels is reversed (BGR to RGB)", choices=(0, 1)),
        )
        if nv12:
            self.attributes += (
                Attribute("matrix", "int", 601, "BT.601, BT.709 or BT.2020", choices=tuple(LUMA)),
                Attribute("full_range", "int", 0, "1: luma is 0 to 255, not 16 to 235", choices=(0, 1)),
            )

    def check(self, call: Call) -> None:
        """Sizes that are not 0, channels that there are, as many means as channels."""
        (frame,) = call.inputs
        sides = frame.shape[1:3]
        if any(side == 0 for side in sides):
            raise call.refuse(f"'frame' is {frame}: there are no pixels in it.")
        if any(isinstance(side, int) and side > MAX_SIDE for side in sides):
            raise call.refuse(f"'frame' is {frame}; a side can have {MAX_SIDE} pixels.")
        if self.nv12 and any(isinstance(side, int) and side % unit for side, unit in zip(sides, (3, 2))):
            raise call.refuse(f"'frame' is {frame}; NV12 has an even width, and 3 rows for every 2 of the picture.")
        if not self.nv12 and all(differ(frame.shape[3], count) for count in (1, 3, 4)):
            raise call.refuse(f"'frame' is {frame}; it has 1, 3 or 4 channels, the last dimension.")
        for name in ("mean", "std"):
            values = _numbers(call, name)
            if len(values) != 1 and differ(self._channels(call), len(values)):
                raise call.refuse(f"'{name}' has {len(values)} values for {self._channels(call)} channels.")
            if name == "std" and 0.0 in values:
                raise call.refuse("'std' has a 0 in it.")

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """[N, channels, height, width]."""
        shape = (call.inputs[0].shape[0], self._channels(call), call.integer("height"), call.integer("width"))
        return (TensorType(DTYPES[call.integer("to")], shape),)

    def _channels(self, call: Call) -> Dim:
        """Of the output."""
        return 3 if self.nv12 else minimum(3, call.inputs[0].shape[3])

    def axes(self, call: Call) -> tuple[Axis, Axis]:
        """Rows and columns of the resampling. The frame's size must be known."""
        shape = call.inputs[0].shape
        rows = call.known(shape[1], "the frame's height")
        frame = (rows * 2 // 3 if self.nv12 else rows, call.known(shape[2], "the frame's width"))
        target = (call.integer("height"), call.integer("width"))
        content = content_size(frame, target) if call.integer("keep_aspect") else target
        return tuple(  # type: ignore[return-value]
            Axis(inside, size, (whole - size) // 2 * call.integer("centered"), bool(call.integer("antialias")))
            for inside, size, whole in zip(frame, content, target)
        )

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """In float64, rounded once."""
        import numpy as np

        frame = arrays[0].view(np.uint8)
        rows, columns = self.axes(call)
        if self.nv12:
            luma = frame[:, None, : rows.inside]
            chroma = frame[:, rows.inside :].reshape(len(frame), rows.inside // 2, columns.inside // 2, 2)
            u, v = (_resampled(chroma[None, ..., i], *map(_halved, (rows, columns)))[0] for i in (0, 1))
            pixels = _rgb(_resampled(luma, rows, columns)[:, 0], u, v, call)
        else:
            pixels = _resampled(np.moveaxis(frame[..., :3], 3, 1), rows, columns)
        if call.integer("swap"):
            pixels = pixels[:, ::-1]
        (made,) = self.output_types(call)
        out = np.full(made.sizes, call.number("pad"))
        out[..., rows.start : rows.start + rows.content, columns.start : columns.start + columns.content] = pixels
        mean, std = (np.reshape(_numbers(call, name), (-1, 1, 1)) for name in ("mean", "std"))
        return (((out * call.number("scale") - mean) / std).astype(made.dtype),)

    def body(self, b: Body) -> None:
        """Two matrix products, rows and columns, with weights that are made of the sizes; then Where and arithmetic."""
        from plugins_trt.letterbox_body import write

        write(b, nv12=self.nv12)

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """The bytes of a load and of a store, counted through those that this call's sizes allow."""
        self.axes(call)
        return tuple(range(1, len(self._tactics(call)) + 1))

    def _tactics(self, call: Call) -> list[tuple[int, int]]:
        """Bytes of a load, pixels of a store: each no more than divides a row."""
        shape = call.inputs[0].shape
        pitch = call.known(shape[2], "the frame's width") * (1 if self.nv12 else call.known(shape[3], "the channels"))
        width, item = call.integer("width"), self.output_types(call)[0].item_bytes
        fitting = [(_divisor(pitch, load), _divisor(width, store // item)) for load, store in _TACTICS]
        return list(dict.fromkeys(fitting))

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """The frame's size is known; the batch may be free."""
        rows, columns = self.axes(call)
        load, pixels = self._tactics(call)[tactic - 1]
        channels = 1 if self.nv12 else call.known(call.inputs[0].shape[3], "the number of channels")
        planes = [(columns, channels)] + [(_halved(columns), 2)] * self.nv12
        tile_x, tile_y = min(32 * pixels, 256), _THREADS // 32
        while True:
            spans = [_span(axis, call.integer("width"), tile_x, width, load) for axis, width in planes]
            if 4 * tile_y * sum(spans) <= _SHARED_BYTES:
                break
            if tile_y > 1:
                tile_y //= 2
            elif tile_x > pixels:
                tile_x //= 2
            else:
                raise call.refuse("the frame shrinks too much for shared memory. Shrink it in two steps.")
        (made,) = self.output_types(call)
        batch, height, width = made.shape[0], call.integer("height"), call.integer("width")
        out = 3 if self.nv12 else min(3, channels)
        mean, std = (_numbers(call, name) * (out if len(_numbers(call, name)) == 1 else 1) for name in ("mean", "std"))
        constants: dict[str, Scalar] = {
            "T": C_TYPES[made.dtype], "NV12": int(self.nv12), "CHANNELS": channels, "OUT_CHANNELS": out,
            "FRAME_H": rows.inside, "FRAME_W": columns.inside, "HEIGHT": height, "WIDTH": width,
            "CONTENT_H": rows.content, "CONTENT_W": columns.content, "TOP": rows.start, "LEFT": columns.start,
            "ANTIALIAS": call.integer("antialias"), "SWAP": call.integer("swap"), "PAD": call.number("pad"),
            "THREADS": _THREADS, "LOAD": load, "VEC": pixels, "TILE_X": tile_x, "TILE_Y": tile_y, "SPAN": spans[0],
        }  # fmt: skip
        for channel in range(out):
            constants[f"MULTIPLY_{channel}"] = call.number("scale") / std[channel]
            constants[f"ADD_{channel}"] = -mean[channel] / std[channel]
        if self.nv12:
            constants["CHROMA_SPAN"] = spans[1]
            constants |= zip(("BLACK", "Y_SCALE", "R_V", "G_U", "G_V", "B_U"), colour_matrix(call))
        return KernelPlan(
            entry="edgekit_letterbox_normalize",
            constants=constants,
            grid=(ceil_div(width, tile_x), ceil_div(height, tile_y), maximum(1, batch)),
            block=(_THREADS, 1, 1),
            scalars=(batch,),
            shared_bytes=4 * tile_y * sum(spans),
        )

    def cost(self, call: Call) -> Cost:
        """The frame's rows that have a weight, once; a multiply-add for each weight, rows first, then columns."""
        rows, columns = self.axes(call)
        (frame,), (made,) = call.inputs, self.output_types(call)
        taps_y, taps_x = (sum(b - a + 1 for a, b in map(axis.taps, range(axis.content))) for axis in (rows, columns))
        touched = len({row for at in range(rows.content) for row in range(rows.taps(at)[0], rows.taps(at)[1] + 1)})
        row_bytes = frame.bytes // rows.inside  # of the whole batch
        return Cost(
            bytes_read=row_bytes * touched,
            bytes_written=made.bytes,
            flops=2 * row_bytes * taps_y
            + 2 * made.sizes[0] * made.sizes[1] * rows.content * taps_x
            + 2 * made.elements,
        )

    def examples(self) -> tuple[Call, ...]:
        """Full HD and 4K cameras to a detector, and a small camera that is enlarged."""
        frames = ((1, 1080, 1920), (8, 2160, 3840), (1, 480, 640))
        return tuple(self.example(size, height=640, width=640, to=10, pad=114.0) for size in frames)

    def small_examples(self) -> tuple[Call, ...]:
        """Shrunk, enlarged, as it is, one pixel; padding at each side; packs of each size; every attribute."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if self.nv12:
            return (
                self.example((2, 10, 14), height=6, width=9),
                self.example((1, 48, 96), height=32, width=40, to=10, mean=mean, std=std, matrix=709, pad=114.0),
                self.example((1, 2, 2), height=5, width=3, matrix=2020, full_range=1, swap=1),
                self.example((3, 16, 30), height=33, width=64, antialias=0, centered=0),
                self.example((1, 6, 8), dtype="int8", height=4, width=8),
            )
        return (
            self.example((2, 7, 5), channels=1, height=3, width=8),
            self.example((2, 45, 80), height=40, width=40, to=10, mean=mean, std=std, pad=114.0, swap=1),
            self.example((1, 1, 1), channels=4, height=4, width=7, pad=255.0),
            self.example((3, 33, 17), channels=4, height=64, width=66, to=10, keep_aspect=0),
            self.example((1, 70, 256), height=16, width=50, antialias=0, centered=0, swap=1),
            self.example((1, 3, 4000), channels=1, height=2, width=3),
            self.example((1, 6, 8), dtype="int8", height=4, width=8),
        )

    def example(
        self, size: tuple[int, int, int], *, channels: int = 3, dtype: str = "uint8", **attributes: Any
    ) -> Call:
        """A call on `size`, (frames, height, width)."""
        batch, height, width = size
        shape = (batch, height // 2 * 3, width) if self.nv12 else (batch, height, width, channels)
        return self.call(TensorType(dtype, shape), **attributes)


def colour_matrix(call: Call) -> tuple[float, ...]:
    """Luma of black, factor of luma, and of chroma in red (v), green (u, v) and blue (u), to pixels of 0 to 255."""
    red, blue = LUMA[call.integer("matrix")]
    black, luma, chroma = (0.0, 1.0, 1.0) if call.integer("full_range") else (16.0, 255 / 219, 255 / 224)
    green = 1 - red - blue
    r_v, b_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    return black, luma, r_v, -b_u * blue / green, -r_v * red / green, b_u


def _rgb(y: NDArray[Any], u: NDArray[Any], v: NDArray[Any], call: Call) -> NDArray[Any]:
    import numpy as np

    black, scale, r_v, g_u, g_v, b_u = colour_matrix(call)
    luma, u, v = (y - black) * scale, u - 128, v - 128
    return np.clip(np.stack([luma + r_v * v, luma + g_u * u + g_v * v, luma + b_u * u], axis=1), 0, 255)


def _resampled(planes: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[Any]:
    import numpy as np

    return np.asarray(rows.weights() @ planes.astype(np.float64) @ columns.weights().T)


def _halved(axis: Axis) -> Axis:
    """The same axis of the chroma planes."""
    return Axis(axis.inside // 2, axis.content, axis.start, axis.antialias)


def _numbers(call: Call, name: str) -> tuple[float, ...]:
    values = call.attributes[name]
    assert isinstance(values, tuple)
    return tuple(float(value) for value in values)


def _divisor(value: int, most: int) -> int:
    """The largest power of two that divides `value`, and is not above `most`."""
    return min(value & -value, most)


def _span(axis: Axis, width: int, tile: int, channels: int, load: int) -> int:
    """Bytes of a row, in whole loads, that the widest tile of the output needs; a multiple of 4."""
    spans: Sequence[int] = [4]
    for left in range(-axis.start, width - axis.start, tile):
        low, high = max(left, 0), min(left + tile, axis.content) - 1
        if low <= high:
            first, last = axis.taps(low)[0] * channels // load, -(-(axis.taps(high)[1] + 1) * channels // load)
            spans = [*spans, (last - first) * load]
    return -(-max(spans) // 4) * 4


OPERATORS = (LetterboxNormalize(nv12=False), LetterboxNormalize(nv12=True))
