"""A detector's head to its detections: decode, threshold, top k and non-maximum suppression, in one launch.

What it decides, and how:

- A candidate is a box with its best class (the first, of equal scores), or with `multi_label` each pair of a box and a
  class, whose score is above the threshold. With `sigmoid` scores are logits: they are compared as they are, with the
  threshold's logit, so that order and ties are those of the logits.
- A NaN score is no candidate. A box with a corner that is NaN or infinite is none. A box's corners are put in order.
- Candidates are ranked by score, equal ones by candidate and then class, and the first `top_k` remain.
- In that order a candidate survives unless its overlap (intersection over union, in float32, each operation rounded)
  with a survivor, of its own class unless `class_agnostic`, is above `iou_threshold`. A box without an area overlaps
  nothing. The first `max_detections` survivors are the result; the rest of the outputs is 0, and -1 for classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from plugins_trt.body import Body
from plugins_trt.dims import Dim, differ, maximum
from plugins_trt.operator import C_TYPES, Attribute, Call, Cost, KernelPlan, Operator, Port, Scalar, TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

MAX_TOP_K = 1024
"""Candidates that are held for suppression at most; the kernel's buffer of keys has room for a round beside them."""

LOWEST = -3.4028234663852886e38
"""What stands for a threshold of 0 among logits."""

Kind = Literal["boxes", "head", "anchors"]

_FLOATS = ("float32", "float16")
_SUMMARIES = {
    "boxes": "Boxes and scores to detections: threshold, top k and non-maximum suppression",
    "head": "A YOLO head (boxes and scores in one tensor, channels first) to detections",
    "anchors": "Offsets from anchors (SSD) and scores to detections",
}


class DecodeNms(Operator):
    """Detections of each image. `head` is [N, 4 + classes, candidates], as YOLO heads from version 8 on give it;
    `anchors` has offsets from anchors for boxes. See the module's text for every rule."""

    kernel_file = "decode_nms.cu"
    outputs = ("count", "boxes_out", "scores_out", "classes_out")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = "decode_nms" + ("" if kind == "boxes" else f"_{kind}")
        self.summary = _SUMMARIES[kind]
        if kind == "head":
            self.inputs = (Port("head", _FLOATS, ranks=(3,), doc="[N, 4 + classes, candidates]"),)
        else:
            self.inputs = (
                Port("boxes", _FLOATS, ranks=(3,), doc="[N, candidates, 4]"),
                Port("scores", like="boxes", ranks=(3,), doc="[N, candidates, classes]"),
            )
        self.attributes = (
            Attribute("score_threshold", "float", 0.25, "a candidate's score is above it", minimum=0, maximum=1),
            Attribute("iou_threshold", "float", 0.45, "overlap above it suppresses", minimum=0, maximum=1),
            Attribute("top_k", "int", 1000, "candidates that are looked at further", minimum=1, maximum=MAX_TOP_K),
            Attribute("max_detections", "int", 100, "detections of an image", minimum=1, maximum=MAX_TOP_K),
            Attribute("sigmoid", "int", 0, "1: scores are logits", choices=(0, 1)),
            Attribute("multi_label", "int", 0, "1: a box can have several classes", choices=(0, 1)),
            Attribute("class_agnostic", "int", 0, "1: boxes suppress those of other classes too", choices=(0, 1)),
            Attribute("background", "int", 0, "1: class 0 is the background, and never detected", choices=(0, 1)),
        )  # fmt: skip
        if kind == "anchors":
            self.inputs += (
                Port("anchors", like="boxes", ranks=(2,), doc="[candidates, 4]: centre x, y, width, height"),
            )
            self.attributes += (
                Attribute("center_variance", "float", 0.1, "factor on the offsets of the centre"),
                Attribute("size_variance", "float", 0.2, "factor on the logarithms of the size"),
            )
        else:
            doc = "1: boxes are centre x, centre y, width, height; 0: left, top, right, bottom"
            self.attributes += (Attribute("center", "int", int(kind == "head"), doc, choices=(0, 1)),)

    def check(self, call: Call) -> None:
        """Shapes that agree, and limits that do."""
        if self.kind == "head":
            (head,) = call.inputs
            if isinstance(head.shape[1], int) and head.shape[1] < 5:
                raise call.refuse(f"'head' is {head}; it has 4 coordinates and at least one class, on axis 1.")
        else:
            boxes, scores = call.inputs[:2]
            if differ(boxes.shape[2], 4):
                raise call.refuse(f"'boxes' is {boxes}; a box has 4 numbers, on the last axis.")
            if any(map(differ, boxes.shape[:2], scores.shape[:2])):
                raise call.refuse(
                    f"'boxes' is {boxes} and 'scores' {scores}; they have the same images and candidates."
                )
            if scores.shape[2] == 0:
                raise call.refuse(f"'scores' is {scores}: there are no classes.")
            if self.kind == "anchors" and any(map(differ, call.inputs[2].shape, boxes.shape[1:])):
                raise call.refuse(f"'boxes' is {boxes} and 'anchors' {call.inputs[2]}; each candidate has an anchor.")
        _, candidates, classes = self._sizes(call)
        if candidates == 0:
            raise call.refuse("there are no candidates in the inputs.")
        if isinstance(candidates, int) and isinstance(classes, int) and candidates * classes >= 2**31:
            raise call.refuse(f"{candidates} candidates of {classes} classes are more than an index counts.")
        if call.integer("max_detections") > call.integer("top_k"):
            raise call.refuse("'max_detections' is above 'top_k'; no more can be found than are looked at.")
        if call.integer("sigmoid") and call.number("score_threshold") == 1:
            raise call.refuse("'score_threshold' is 1, which no sigmoid is above.")

    def _sizes(self, call: Call) -> tuple[Dim, Dim, Dim]:
        """Images, candidates, classes."""
        shape = call.inputs[0].shape
        if self.kind == "head":
            return shape[0], shape[2], shape[1] - 4
        return shape[0], shape[1], call.inputs[1].shape[2]

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """How many there are, boxes (left, top, right, bottom), scores, classes."""
        batch, most = call.inputs[0].shape[0], call.integer("max_detections")
        return (
            TensorType("int32", (batch,)),
            TensorType("float32", (batch, most, 4)),
            TensorType("float32", (batch, most)),
            TensorType("int32", (batch, most)),
        )

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """In float32, image by image, survivor by survivor."""
        from plugins_trt.decode_reference import detections

        return detections(call, self.kind, *arrays)

    def body(self, b: Body) -> None:
        """TopK, a matrix of overlaps, and a Loop that ends when nothing changes: see `plugins_trt.decode_body`."""
        from plugins_trt.decode_body import write

        write(b, self.kind)

    def fuse(self, graph: Graph) -> None:
        """ONNX's NonMaxSuppression is left, and the reason said: it gives a row for each box that is kept, and looks at
        any number of boxes, so that none of these operators gives the same."""
        if self.kind == "boxes":
            for node in graph.nodes("NonMaxSuppression"):
                graph.leave(
                    self,
                    node,
                    "it gives as many rows as boxes are kept, and a plugin's outputs have fixed sizes. Have the model "
                    "end in plugins_trt.torch.decode_nms instead.",
                )

    def threshold(self, call: Call) -> float:
        """The score threshold in the terms of the scores that are given: a logit where they are logits."""
        value = call.number("score_threshold")
        if not call.integer("sigmoid"):
            return value
        return math.log(value / (1 - value)) if value else LOWEST

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """Threads of a block, a multiple of 32, and in the remainder how many of them share a candidate's classes."""
        classes = call.known(self._sizes(call)[2], "the number of classes")
        lanes = [lanes for lanes in (4, 2, 8, 1) if lanes == 1 or lanes * 2 <= classes]
        if call.integer("multi_label"):
            lanes = [1]  # nothing is shared
        return tuple(threads + lane for threads in (1024, 512) for lane in lanes)

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """One block an image. Images and candidates may be free, classes may not."""
        batch, candidates, free = self._sizes(call)
        classes = call.known(free, "the number of classes")
        side: Dim = candidates if self.kind == "head" else classes  # what lies next to each other
        item = call.inputs[0].item_bytes
        packs = (v for v in (8, 4, 2) if isinstance(side, int) and v * item <= 16 and side % v == 0)
        constants: dict[str, Scalar] = {
            "T": C_TYPES[call.inputs[0].dtype],
            "HEAD": int(self.kind == "head"), "ANCHORS": int(self.kind == "anchors"), "CLASSES": classes,
            "VEC": next(packs, 1), "LANES": tactic % 32, "THREADS": tactic // 32 * 32,
            "TOP_K": call.integer("top_k"), "MAX_DETECTIONS": call.integer("max_detections"),
            "THRESHOLD": self.threshold(call), "IOU": call.number("iou_threshold"),
            "CENTER": 1 if self.kind == "anchors" else call.integer("center"),
        }  # fmt: skip
        for name in ("sigmoid", "multi_label", "class_agnostic", "background"):
            constants[name.upper()] = call.integer(name)
        for name in ("center_variance", "size_variance"):
            constants[name.upper()] = call.number(name) if self.kind == "anchors" else 1.0
        return KernelPlan(
            entry="edgekit_decode_nms",
            constants=constants,
            grid=(maximum(1, batch), 1, 1),
            block=(tactic // 32 * 32, 1, 1),
            scalars=(batch, candidates),
        )

    def cost(self, call: Call) -> Cost:
        """Each score once, the boxes of `top_k`, and as many overlaps (16 operations) as it takes to suppress none."""
        batch, candidates, classes = (call.known(size, "every size") for size in self._sizes(call))
        held, found = min(candidates, call.integer("top_k")), call.integer("max_detections")
        scores = candidates * classes * call.inputs[0].item_bytes
        boxes = held * 4 * call.inputs[0].item_bytes * (2 if self.kind == "anchors" else 1)
        written = sum(made.bytes for made in self.output_types(call))
        return Cost(batch * (scores + boxes), written, batch * (candidates * classes + 16 * held * min(held, found)))

    def examples(self) -> tuple[Call, ...]:
        """YOLO at 640 x 640 (8400 candidates of 80 classes), the same in FP32 and a batch; SSD300 (8732 of 21)."""
        if self.kind == "anchors":
            return (self.example((1, 8732, 21), "float16", multi_label=1, background=1),)
        return tuple(
            self.example((batch, 8400, 80), dtype, multi_label=label)
            for batch, dtype, label in ((1, "float16", 0), (8, "float16", 0), (1, "float32", 1))
        )

    def small_examples(self) -> tuple[Call, ...]:
        """One candidate, one class, logits, packs of every width, several classes a box, more candidates than top k."""
        common = (
            self.example((2, 40, 8), "float32", top_k=32, max_detections=10),
            self.example((1, 1, 1), "float16", top_k=1, max_detections=1),
            self.example((2, 333, 5), "float16", sigmoid=1, multi_label=1, top_k=100, max_detections=30),
        )
        if self.kind == "anchors":
            return common
        return (
            *common,
            self.example((1, 256, 7), "float16", center=0, class_agnostic=1, background=1, max_detections=64),
            self.example((1, 90, 12), "float32", center=1, score_threshold=0.0, sigmoid=1, top_k=70, max_detections=70),
        )

    def example(self, size: tuple[int, int, int], dtype: str, **attributes: Any) -> Call:
        """A call on `size`: images, candidates, classes."""
        batch, candidates, classes = size
        if self.kind == "head":
            return self.call(TensorType(dtype, (batch, 4 + classes, candidates)), **attributes)
        types = [TensorType(dtype, (batch, candidates, 4)), TensorType(dtype, size)]
        if self.kind == "anchors":
            types.append(TensorType(dtype, (candidates, 4)))
        return self.call(*types, **attributes)

    def sample(self, call: Call, seed: int = 0) -> tuple[NDArray[Any], ...]:
        """Boxes in heaps, so that there is something to suppress, and scores of few values, so that there are ties."""
        import numpy as np

        rng = np.random.default_rng(seed)
        batch, candidates, classes = (call.known(size, "every size") for size in self._sizes(call))
        heaps = rng.uniform(50, 600, (1 + candidates // 12, 2))
        centres = heaps[rng.integers(0, len(heaps), (batch, candidates))] + rng.normal(0, 6, (batch, candidates, 2))
        sizes = rng.uniform(20, 60, (batch, candidates, 2))
        scores = np.round(rng.uniform(0, 1, (batch, candidates, classes)) ** 2, 2)
        if call.integer("sigmoid"):
            scores = scores * 8 - 4
        dtype = call.inputs[0].dtype
        if self.kind == "anchors":
            anchors = np.concatenate([centres[0], sizes[0]], axis=1)
            offsets = rng.normal(0, 1, (batch, candidates, 4))
            return offsets.astype(dtype), scores.astype(dtype), anchors.astype(dtype)
        pair = (centres, sizes) if call.integer("center") else (centres - sizes / 2, centres + sizes / 2)
        boxes = np.concatenate(pair, axis=2)
        if self.kind == "head":
            return (np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1).astype(dtype),)
        return boxes.astype(dtype), scores.astype(dtype)


OPERATORS = (DecodeNms("boxes"), DecodeNms("head"), DecodeNms("anchors"))
