"""The function body of decode_nms.

Not with NonMaxSuppression: its output has as many rows as it finds, which TensorRT-RTX does not take. Instead the best
`top_k` candidates get a matrix of who suppresses whom, and a Loop repeats "a candidate stands if no standing one before
it suppresses it" until nothing changes. After round n the first n are right, so it ends, and with the same
answer as the sequential rule; in practice it takes as many rounds as chains of suppression are long, few.
"""

from __future__ import annotations

from typing import Any

from plugins_trt.body import Body


def write(b: Body, kind: str) -> None:
    """The whole function. Sizes in comments: N images, A candidates, C classes, K = top_k, D = max_detections."""
    corners, scores = _inputs(b, kind)
    threshold = _threshold(b)
    finite = b.op("Equal", b.op("Sub", corners, corners), b.constant(0.0))  # infinity less itself is NaN
    fine = b.op("Equal", b.op("ReduceMin", b.cast(finite, "float32"), b.constant([2]), keepdims=1), b.constant(1.0))
    corners = b.op("Where", fine, corners, b.constant(0.0))
    lowest = b.constant(float("-inf"))
    labels = _range(b, b.size(scores, 2))
    scores = b.op("Where", b.op("IsNaN", scores), lowest, scores)
    scores = b.op("Where", b.op("Less", labels, b.attribute("background")), lowest, scores)
    best = b.op("Equal", b.op("ArgMax", scores, axis=2, keepdims=1), labels)
    several = b.op("Equal", b.attribute("multi_label"), b.constant(1))
    allowed = b.op("And", b.op("And", b.op("Greater", scores, threshold), fine), b.op("Or", best, several))
    # TopK of [N, A * C] and of K more, so that there are always K.
    top_k = b.op("Reshape", b.attribute("top_k"), b.constant([1]))
    images, count = b.size(scores, 0), b.size(scores, 2)
    pairs = b.op("Mul", b.size(scores, 1), count)
    flat = b.op("Reshape", b.op("Where", allowed, scores, lowest), b.op("Concat", images, pairs, axis=0))
    more = b.op("Expand", lowest, b.op("Concat", images, top_k, axis=0))
    values, index = b.op("TopK", b.op("Concat", flat, more, axis=1), top_k, axis=1, outputs=2)
    valid = b.op("Greater", values, threshold)
    index = b.op("Min", index, b.op("Sub", pairs, b.constant([1])))
    at = b.op("Div", index, count)
    label = b.op("Sub", index, b.op("Mul", at, count))
    boxes = b.op("GatherND", corners, b.op("Unsqueeze", at, b.constant([2])), batch_dims=1)
    suppresses = _suppresses(b, boxes, label, valid)
    standing = _settled(b, suppresses, b.op("Unsqueeze", b.cast(valid, "float32"), b.constant([1])), top_k)
    # The first D that stand: their ranks, from above.
    rank = b.cast(b.op("Sub", b.op("Squeeze", top_k), _range(b, top_k)), "float32")
    marks = b.op("Mul", b.op("Squeeze", standing, b.constant([1])), rank)
    most = b.op("Reshape", b.attribute("max_detections"), b.constant([1]))
    mark, chosen = b.op("TopK", marks, most, axis=1, outputs=2)
    found = b.op("Greater", mark, b.constant(0.0))
    score = b.op("GatherElements", values, chosen, axis=1)
    # Sigmoid of what is not chosen would be of minus infinity.
    score = b.op("Where", found, score, b.constant(0.0))
    logits = b.op("Equal", b.attribute("sigmoid"), b.constant(1))
    score = b.op("Where", b.op("And", logits, found), b.op("Sigmoid", score), score)
    box = b.op("GatherND", boxes, b.op("Unsqueeze", chosen, b.constant([2])), batch_dims=1)
    box = b.op("Where", b.op("Unsqueeze", found, b.constant([2])), box, b.constant(0.0))
    kind_of = b.op("Where", found, b.op("GatherElements", label, chosen, axis=1), b.constant(-1))
    total = b.op("ReduceSum", b.cast(found, "float32"), b.constant([1]), keepdims=0)
    b.returns(b.cast(total, "int32"), box, score, b.cast(kind_of, "int32"))


def _range(b: Body, size: str) -> str:
    """[0, 1, ..., size - 1]."""
    zero, one = (b.op("Constant", value_int=value) for value in (0, 1))
    return str(b.op("Range", zero, b.op("Squeeze", size), one))


def _inputs(b: Body, kind: str) -> tuple[str, str]:
    """Corners [N, A, 4] in order, and scores [N, A, C], in float32."""
    given = [b.cast(name, "float32") for name in b.inputs]
    if kind == "head":
        four, one = b.constant([4]), b.constant([1])
        boxes, scores = (
            b.op("Transpose", b.op("Slice", given[0], start, end, one), perm=[0, 2, 1])
            for start, end in ((b.constant([0]), four), (four, b.constant([2**31 - 1])))
        )
    else:
        boxes, scores = given[:2]
    low, high = b.op("Split", boxes, axis=2, num_outputs=2, outputs=2)
    if kind == "anchors":
        place, size = b.op("Split", given[2], axis=1, num_outputs=2, outputs=2)
        low = b.op("Add", b.op("Mul", b.op("Mul", low, b.attribute("center_variance")), size), place)
        high = b.op("Mul", b.op("Exp", b.op("Mul", high, b.attribute("size_variance"))), size)
    half = b.op("Mul", high, b.constant(0.5))
    first, second = b.op("Sub", low, half), b.op("Add", low, half)
    if kind != "anchors":
        centre = b.op("Equal", b.attribute("center"), b.constant(1))
        first, second = b.op("Where", centre, first, low), b.op("Where", centre, second, high)
    return b.op("Concat", b.op("Min", first, second), b.op("Max", first, second), axis=2), scores


def _threshold(b: Body) -> str:
    """The score threshold, or its logit: see `DecodeNms.threshold`."""
    given = b.attribute("score_threshold")
    logit = b.op("Log", b.op("Div", given, b.op("Sub", b.constant(1.0), given)))
    return str(b.op("Where", b.op("Equal", b.attribute("sigmoid"), b.constant(1)), logit, given))


def _suppresses(b: Body, boxes: str, label: str, valid: str) -> str:
    """[N, K, K], 1 where the first (axis 1) would suppress the second (axis 2): it is before it, and overlaps it."""
    low, high = b.op("Split", boxes, axis=2, num_outputs=2, outputs=2)
    size = b.op("Sub", high, low)
    area = _product(b, size)
    mine, theirs = b.constant([2]), b.constant([1])
    meet = b.op(
        "Sub",
        b.op("Min", b.op("Unsqueeze", high, mine), b.op("Unsqueeze", high, theirs)),
        b.op("Max", b.op("Unsqueeze", low, mine), b.op("Unsqueeze", low, theirs)),
    )
    both = _product(b, b.op("Max", meet, b.constant(0.0)))
    union = b.op("Sub", b.op("Add", b.op("Unsqueeze", area, mine), b.op("Unsqueeze", area, theirs)), both)
    met = b.op("Greater", both, b.constant(0.0))
    overlap = b.op("Div", both, b.op("Where", met, union, b.constant(1.0)))
    over = b.op("And", met, b.op("Greater", overlap, b.attribute("iou_threshold")))
    any_class = b.op("Equal", b.attribute("class_agnostic"), b.constant(1))
    same = b.op("Or", b.op("Equal", b.op("Unsqueeze", label, mine), b.op("Unsqueeze", label, theirs)), any_class)
    rank = _range(b, b.size(boxes, 1))
    before = b.op("Less", b.op("Unsqueeze", rank, b.constant([1])), b.op("Unsqueeze", rank, b.constant([0])))
    usable = b.op("And", before, b.op("Unsqueeze", valid, mine))
    return b.cast(b.op("And", b.op("And", over, same), usable), "float32")


def _product(b: Body, sides: str) -> str:
    """Width times height, of [..., 2]."""
    return str(b.op("ReduceProd", sides, b.constant([-1]), keepdims=0))


def _settled(b: Body, suppresses: str, candidates: str, rounds: str) -> str:
    """[N, 1, K]: 1 for what stands, among `candidates`. One round: it stands unless a standing one suppresses it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    node, number = helper.make_node, TensorProto.FLOAT
    zero = numpy_helper.from_array(np.array(0, np.float32))
    shape: list[Any] = [None, 1, None]
    nodes = [
        node("Constant", [], ["zero"], value=zero),
        node("MatMul", ["standing", suppresses], ["against"]),
        node("Greater", ["against", "zero"], ["fallen"]),
        node("Where", ["fallen", "zero", candidates], ["now"]),
        node("Sub", ["now", "standing"], ["difference"]),
        node("Abs", ["difference"], ["distance"]),
        node("ReduceMax", ["distance"], ["largest"], keepdims=0),
        node("Greater", ["largest", "zero"], ["again"]),
    ]
    graph = helper.make_graph(
        nodes,
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("standing", number, shape),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("now", number, shape),
        ],
    )
    start = b.constant(True, "bool")
    return str(b.op("Loop", b.op("Squeeze", rounds), b.op("Squeeze", start), candidates, body=graph))
