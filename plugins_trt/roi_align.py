"""RoIAlign from one feature map or from a pyramid of them, for two-stage detectors and Mask R-CNN.

For one map it is ONNX's RoiAlign in mode "avg", with these rules where ONNX has none: a sample that is off the map by
more than a pixel, or NaN, counts as 0; what has weight 0 is not looked at, be it NaN or infinite; an image index that
there is none of gives zeros; `sampling_ratio` 0 (as many samples as a bin has pixels) takes `most_samples` at most.

A pyramid's level for a region is that of "Feature Pyramid Networks" (Lin et al., 2017), equation 1, as torchvision
computes it: floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6), within the levels that there are, the
first of which is `first_level`. It is found by comparing the area, so that a rounded logarithm does not decide it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugins_trt.body import Body
from plugins_trt.dims import Dim, ceil_div, differ, maximum
from plugins_trt.operator import C_TYPES, Attribute, Call, Cost, KernelPlan, Operator, Port, Scalar, TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

LEVELS = (1, 2, 3, 4, 5)
"""Numbers of feature maps that there are operators for."""

NUDGE = 1e-6
"""Added to a level before it is rounded down, as torchvision does: an area on the very border is in the upper level."""

_MOST = 64
"""Samples of a bin's side at most: a bin has more pixels only if a region is wider than 448 of them on 7 bins."""

_THREADS = 256
_FLOATS = ("float32", "float16")


class RoiAlign(Operator):
    """[regions, channels, height, width]: what `levels` feature maps hold under each region."""

    kernel_file = "roi_align.cu"
    outputs = ("y",)

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.name = "roi_align" if levels == 1 else f"roi_align_fpn{levels}"
        self.summary = "RoIAlign" + (
            f" from a pyramid of {levels} feature maps" if levels > 1 else " from a feature map"
        )
        names = ["x"] if levels == 1 else [f"x{level}" for level in range(levels)]
        self.maps = tuple(
            Port(
                name, _FLOATS, like=names[0] if name != names[0] else "", ranks=(4,), doc="[N, channels, height, width]"
            )
            for name in names
        )
        self.inputs = (
            *self.maps,
            Port("rois", _FLOATS, ranks=(2,), doc="[regions, 4]: left, top, right, bottom, in pixels of the image"),
            Port("batch_indices", ("int64", "int32"), ranks=(1,), doc="[regions]: the image of each"),
        )
        self.attributes = (
            Attribute("output_height", "int", 7, "bins", minimum=1, maximum=256),
            Attribute("output_width", "int", 7, "bins", minimum=1, maximum=256),
            Attribute("sampling_ratio", "int", 2, "samples of a bin's side; 0: its size", minimum=0, maximum=64),
            Attribute("most_samples", "int", 8, "with sampling_ratio 0: at most so many", minimum=1, maximum=_MOST),
            Attribute("aligned", "int", 1, "1: half_pixel of ONNX; 0: output_half_pixel", choices=(0, 1)),
        )  # fmt: skip
        if levels == 1:
            self.attributes += (Attribute("spatial_scale", "float", 1.0, "pixels of the map in a pixel of the image"),)
        else:
            self.attributes += (
                Attribute("spatial_scales", "floats", None, "of each map: its pixels in a pixel of the image"),
                Attribute("first_level", "int", 2, "level of the first map"),
                Attribute("canonical_level", "int", 4, "level of a region of the canonical scale"),
                Attribute("canonical_scale", "float", 224.0, "in pixels of the image", minimum=1e-3),
            )

    def check(self, call: Call) -> None:
        """Maps that agree and are not empty, boxes of 4 numbers, an image for each."""
        *maps, rois, indices = call.inputs
        for port, given in zip(self.maps, maps):
            if any(map(differ, given.shape[:2], maps[0].shape[:2])):
                raise call.refuse(f"'{port.name}' is {given} and '{self.maps[0].name}' {maps[0]}; they have the same "
                                  "images and channels.")  # fmt: skip
            if any(size == 0 for size in given.shape):
                raise call.refuse(f"'{port.name}' is {given}: there is nothing in it.")
        if differ(rois.shape[1], 4):
            raise call.refuse(f"'rois' is {rois}; a region has 4 numbers.")
        if differ(rois.shape[0], indices.shape[0]):
            raise call.refuse(f"'rois' is {rois} and 'batch_indices' {indices}; each region has an image.")
        if len(self.scales(call)) != self.levels:
            raise call.refuse(f"'spatial_scales' has {len(self.scales(call))} values for {self.levels} feature maps.")

    def scales(self, call: Call) -> tuple[float, ...]:
        """Pixels of each map in a pixel of the image."""
        if self.levels == 1:
            return (call.number("spatial_scale"),)
        values = call.attributes["spatial_scales"]
        assert isinstance(values, tuple)
        return tuple(float(value) for value in values)

    def level_areas(self, call: Call) -> tuple[float, ...]:
        """The smallest area of a region on each level but the first, in pixels of the image."""
        if self.levels == 1:
            return ()
        first = call.integer("first_level") - call.integer("canonical_level") - NUDGE
        return tuple(call.number("canonical_scale") ** 2 * 4.0 ** (first + level) for level in range(1, self.levels))

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """[regions, channels, output_height, output_width]."""
        x, rois = call.inputs[0], call.inputs[-2]
        size = call.integer("output_height"), call.integer("output_width")
        return (TensorType(x.dtype, (rois.shape[0], x.shape[1], *size)),)

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """Coordinates in float32, as the kernel's; sums in float64, rounded once."""
        import numpy as np

        *maps, rois, indices = arrays
        (made,) = self.output_types(call)
        out = np.zeros(made.sizes, np.float64)
        with np.errstate(all="ignore"):
            for region, (corners, image) in enumerate(zip(rois.astype(np.float32), indices)):
                if not 0 <= image < len(maps[0]):
                    continue
                area = (corners[2] - corners[0]) * (corners[3] - corners[1])
                level = sum(bool(area >= np.float32(least)) for least in self.level_areas(call))
                scale = np.float32(self.scales(call)[level])
                picture = maps[level][image].astype(np.float64)
                rows, of_rows, samples_y = _taps(call, corners[1::2], scale, made.sizes[2], picture.shape[1])
                columns, of_columns, samples_x = _taps(call, corners[0::2], scale, made.sizes[3], picture.shape[2])
                weights = of_rows[:, :, None, None] * of_columns
                found = picture[:, rows[:, :, None, None], columns]
                summed = np.where(weights == 0, 0, found * weights).sum(axis=(2, 4))
                out[region] = summed / max(samples_y * samples_x, 1)
            return (out.astype(made.dtype),)

    def body(self, b: Body) -> None:
        """Gathers from all maps in one table: see `plugins_trt.roi_body`."""
        from plugins_trt.roi_body import write

        write(b, [port.name for port in self.maps])

    def fuse(self, graph: Graph) -> None:
        """ONNX's RoiAlign in mode "avg". Where the size of bins decides how many samples they take, only a kernel does
        its work: the function, which has a fixed number of samples, would be far slower than the node."""
        from onnx import helper

        for node in graph.nodes("RoiAlign") if self.levels == 1 else []:
            given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            names = ("output_height", "output_width", "sampling_ratio", "spatial_scale")
            attributes = {name: given.get(name, default) for name, default in zip(names, (1, 1, 0, 1.0))}
            if given.get("mode", b"avg") != b"avg":
                graph.leave(self, node, "it takes the largest sample, and the kernel the mean.")
            elif not attributes["sampling_ratio"] and not graph.for_kernels:
                graph.leave(self, node, "the size of each region decides how many samples it takes (sampling_ratio 0).")
            elif any(graph.shape(name) is None for name in node.input):
                graph.leave(self, node, "the ranks of its inputs are not known.")
            else:
                # Before operator set 16 there is no attribute for it, and coordinates are not aligned.
                usual = b"half_pixel" if graph.opset >= 16 else b"output_half_pixel"
                attributes["aligned"] = int(given.get("coordinate_transformation_mode", usual) == b"half_pixel")
                if not attributes["sampling_ratio"]:
                    attributes["most_samples"] = _MOST
                graph.replace(self, [node], list(node.input), list(node.output), **attributes)

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """Channels of a thread: more are more loads under way, and more registers."""
        return (4, 8, 2)

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """Every size may be free but those of the output."""
        *maps, rois, indices = call.inputs
        images, channels = maps[0].shape[:2]
        height, width = call.integer("output_height"), call.integer("output_width")
        bins = height * width
        group = max(1, _THREADS // bins)
        constants: dict[str, Scalar] = {
            "T": C_TYPES[maps[0].dtype], "ROI": C_TYPES[rois.dtype], "INDEX": C_TYPES[indices.dtype],
            "LEVELS": self.levels, "OUT_H": height, "OUT_W": width, "SAMPLES": call.integer("sampling_ratio"),
            "MOST_SAMPLES": call.integer("most_samples"), "ALIGNED": call.integer("aligned"), "THREADS": _THREADS,
            "GROUP": group, "CHANNELS_EACH": tactic,
        }  # fmt: skip
        constants |= {f"SCALE_{level}": scale for level, scale in enumerate(self.scales(call))}
        constants |= {f"LEVEL_AREA_{level}": area for level, area in enumerate(self.level_areas(call), 1)}
        sizes: list[Dim] = [size for given in maps for size in given.shape[2:]]
        return KernelPlan(
            entry="edgekit_roi_align",
            constants=constants,
            grid=(maximum(1, rois.shape[0]), ceil_div(channels, group * tactic), -(-bins // _THREADS)),
            block=(_THREADS, 1, 1),
            scalars=(rois.shape[0], images, channels, *sizes),
        )

    def cost(self, call: Call) -> Cost:
        """Every map once, whatever the regions; four multiply-adds a sample (2 x 2 of them where the bin decides)."""
        read = sum(given.bytes for given in call.inputs)
        (made,) = self.output_types(call)
        samples = (call.integer("sampling_ratio") or 2) ** 2
        return Cost(read, made.bytes, made.elements * (8 * samples + 1))

    def examples(self) -> tuple[Call, ...]:
        """Faster R-CNN on 800 x 1344 pixels, 1000 regions into 7 x 7; masks of 100 into 14 x 14; FP32."""
        return tuple(
            self.example((1, 256, 200, 336), regions, dtype, output_height=bins, output_width=bins)
            for regions, bins, dtype in ((1000, 7, "float16"), (100, 14, "float16"), (1000, 7, "float32"))
        )

    def small_examples(self) -> tuple[Call, ...]:
        """One pixel, one region; more bins than threads; odd sizes; samples by the bin; ONNX's older alignment."""
        pyramid = (
            self.example((2, 5, 24, 18), 9, "float32", output_height=3, output_width=2),
            self.example((3, 37, 32, 40), 12, "float16", aligned=0, sampling_ratio=0, most_samples=3),
        )
        if self.levels > 1:
            return pyramid
        return (
            *pyramid,
            self.example((1, 1, 1, 1), 1, "float32", output_height=1, output_width=1, sampling_ratio=1),
            self.example((1, 3, 9, 7), 2, "float16", output_height=20, output_width=17, sampling_ratio=0),
            self.example((2, 70, 6, 11), 5, "float32", output_height=1, output_width=4, aligned=0, sampling_ratio=3),
        )

    def example(self, size: tuple[int, int, int, int], regions: int, dtype: str, **attributes: Any) -> Call:
        """A call on a first map of `size` at a quarter of the image, and the others each half as large."""
        batch, channels, height, width = size
        maps = [
            TensorType(dtype, (batch, channels, max(1, height >> level), max(1, width >> level)))
            for level in range(self.levels)
        ]
        scales = tuple(0.25 / 2**level for level in range(self.levels))
        given: dict[str, Any] = {"spatial_scale": 0.25} if self.levels == 1 else {"spatial_scales": scales}
        rois, indices = TensorType("float32", (regions, 4)), TensorType("int64", (regions,))
        return self.call(*maps, rois, indices, **{**given, **attributes})

    def sample(self, call: Call, seed: int = 0) -> tuple[NDArray[Any], ...]:
        """Regions of every size, some of which leave the image or are empty."""
        import numpy as np

        rng = np.random.default_rng(seed)
        *arrays, rois, indices = super().sample(call, seed)
        height, width = (size / self.scales(call)[0] for size in arrays[0].shape[2:])
        count = len(rois)
        centres = rng.uniform(-0.1, 1.1, (count, 2)) * (width, height)
        sizes = np.exp(rng.uniform(np.log(2), np.log(1.2 * max(height, width)), (count, 2))) * (
            rng.random((count, 1)) > 0.05
        )
        made = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(rois.dtype)
        return (*arrays, made, rng.integers(0, len(arrays[0]), count).astype(indices.dtype))


def _taps(
    call: Call, ends: NDArray[Any], scale: np.float32, bins: int, size: int
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Indices and weights [bins, 2 samples] along one axis of `size`, and the number of samples of a bin."""
    import numpy as np

    offset = np.float32(0.5 if call.integer("aligned") else 0.0)
    start = ends[0] * scale - offset
    length = ends[1] * scale - offset - start
    if not call.integer("aligned"):
        length = np.maximum(length, np.float32(1))
    bin_size = length / np.float32(bins)
    samples = call.integer("sampling_ratio")
    if not samples:
        samples = int(np.fmin(np.fmax(np.ceil(bin_size), 0), call.integer("most_samples")))
    which, sample = np.arange(bins, dtype=np.float32)[:, None], np.arange(samples, dtype=np.float32)
    at = start + which * bin_size + (sample + np.float32(0.5)) * bin_size / np.float32(samples)
    inside = (at >= -1) & (at <= size)
    held = np.where(inside, np.maximum(at, 0), 0)
    low = np.minimum(held.astype(np.int64), size - 1)
    beyond = np.where(low < size - 1, held - low, 0)
    taps = np.concatenate([low, np.minimum(low + 1, size - 1)], axis=1)
    return taps, np.concatenate([(1 - beyond) * inside, beyond * inside], axis=1), samples


OPERATORS = tuple(map(RoiAlign, LEVELS))
