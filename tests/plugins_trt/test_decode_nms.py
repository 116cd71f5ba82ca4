from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import plugins_trt.torch as ops
from edgekit.runtime.ort import OrtSession
from plugins_trt.body import model_of
from plugins_trt.decode_nms import DecodeNms
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.operator import TensorType
from tests.cuda_on_host.host import run_operator

BOXES = DecodeNms("boxes")
HEAD = DecodeNms("head")
ANCHORS = DecodeNms("anchors")
Results = tuple[np.ndarray, ...]


def call_of(op: DecodeNms, *arrays: np.ndarray, **attributes: Any) -> Any:
    return op.call(*(TensorType(a.dtype.name, a.shape) for a in arrays), **attributes)


def assert_same(got: Any, want: Any, *, of_boxes: float = 0.0) -> None:
    """Counts and classes to the last bit, and boxes unless they are exponentials; scores but for a sigmoid."""
    for index in (0, 3):
        np.testing.assert_array_equal(got[index], want[index], err_msg=f"output {index}")
    np.testing.assert_allclose(got[1], want[1], rtol=of_boxes, atol=0)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-6, atol=2e-8)  # ONNX Runtime's sigmoid ends at -18


def assert_agrees(
    op: DecodeNms, *arrays: np.ndarray, tactic: int | None = None, seed: int = 1, **attributes: Any
) -> Any:
    """The reference's result, which the kernel and the function body have too."""
    call = call_of(op, *arrays, **attributes)
    want = op.reference(call, *arrays)
    assert_same(run_operator(op, call, *arrays, tactic=tactic, seed=seed), want)
    with OrtSession(model_of(op, call).SerializeToString()) as session:
        made = session.run({port.name: array for port, array in zip(op.inputs, arrays)})
    assert_same([made[name] for name in op.outputs], want)
    return want


def row(*corners: float) -> list[float]:
    return list(corners)


def detect(boxes: list[list[float]], scores: list[Any], **attributes: Any) -> list[tuple[list[float], float, int]]:
    """Detections of one image, as (box, score, class); its candidates have one class or several."""
    given = np.array(boxes, np.float32)[None], np.array(scores, np.float32).reshape(1, len(boxes), -1)
    options: dict[str, Any] = {"top_k": 8, "max_detections": 8, **attributes}
    count, found, values, labels = assert_agrees(BOXES, *given, **options)
    assert (found[0, count[0] :] == 0).all()
    assert (values[0, count[0] :] == 0).all()
    assert (labels[0, count[0] :] == -1).all()
    return [(found[0, i].tolist(), float(values[0, i]), int(labels[0, i])) for i in range(count[0])]


A, B, FAR = row(0, 0, 10, 10), row(0, 0, 10, 8), row(50, 50, 60, 60)


def test_the_better_of_two_boxes_that_overlap_stays() -> None:
    assert detect([A, B, FAR], [0.5, 0.75, 0.375]) == [(B, 0.75, 0), (FAR, 0.375, 0)]


def test_boxes_of_another_class_are_not_suppressed_unless_asked() -> None:
    scores = [[0.5, 0.0], [0.0, 0.75], [0.375, 0.0]]
    assert detect([A, B, FAR], scores) == [(B, 0.75, 1), (A, 0.5, 0), (FAR, 0.375, 0)]
    assert detect([A, B, FAR], scores, class_agnostic=1) == [(B, 0.75, 1), (FAR, 0.375, 0)]


def test_a_box_that_is_suppressed_suppresses_none() -> None:
    chain = [row(0, 0, 10, 10), row(4, 0, 14, 10), row(8, 0, 18, 10)]  # each overlaps the next with 6 / 14
    assert [box for box, *_ in detect(chain, [0.9, 0.8, 0.7], iou_threshold=0.4)] == [chain[0], chain[2]]


def test_the_threshold_itself_does_not_pass_and_does_not_suppress() -> None:
    assert detect([A, FAR], [0.25, 0.5], score_threshold=0.25) == [(FAR, 0.5, 0)]
    half = row(0, 0, 10, 5)
    assert len(detect([A, half], [0.9, 0.8], iou_threshold=0.5)) == 2
    assert len(detect([A, half], [0.9, 0.8], iou_threshold=0.499)) == 1


def test_equal_scores_rank_by_candidate_and_then_by_class() -> None:
    boxes = [row(20 * i, 0, 20 * i + 10, 10) for i in range(6)]
    assert [box[0] for box, *_ in detect(boxes, [0.5] * 6, top_k=4, max_detections=3)] == [0, 20, 40]
    several = detect([A, FAR], [[0.5, 0.5, 0.75], [0.75, 0.5, 0.5]], multi_label=1)
    assert [(box[0], label) for box, _, label in several] == [(0, 2), (50, 0), (0, 0), (0, 1), (50, 1), (50, 2)]
    assert [label for *_, label in detect([A, FAR], [[0.5, 0.5], [0.25, 0.5]])] == [0, 1]
    assert [box for box, *_ in detect([A, B], [0.0, -0.0], sigmoid=1)] == [A]


def test_nan_and_infinite_scores() -> None:
    boxes = [row(20 * i, 0, 20 * i + 10, 10) for i in range(4)]
    found = detect(boxes, [np.nan, 0.5, np.inf, -np.inf])
    assert [(box[0], score) for box, score, _ in found] == [(40, np.inf), (20, 0.5)]
    assert detect([A], [[np.nan, 0.5, np.nan]]) == [(A, 0.5, 1)]
    assert detect([A], [np.nan]) == []


def test_boxes_that_are_not_finite_are_no_candidates_and_do_not_take_a_place() -> None:
    bad = [row(np.nan, 0, 1, 1), row(0, 0, np.inf, 1), row(0, -np.inf, 1, 1), row(0, 0, 1, np.nan)]
    assert detect([*bad, A], [0.9] * 4 + [0.3], top_k=1, max_detections=1) == [(A, pytest.approx(0.3), 0)]


def test_empty_boxes_overlap_nothing_and_corners_are_put_in_order() -> None:
    empty = row(5, 5, 5, 9)
    assert len(detect([A, empty, empty], [0.9, 0.8, 0.7], iou_threshold=0.0)) == 3
    assert detect([row(10, 10, 0, 0), B], [0.9, 0.8]) == [(A, pytest.approx(0.9), 0)]


def test_no_detections_and_no_images() -> None:
    assert detect([A, B], [0.1, 0.2]) == []
    arrays = np.zeros((0, 5, 4), np.float32), np.zeros((0, 5, 3), np.float32)
    made = run_operator(BOXES, call_of(BOXES, *arrays, top_k=8, max_detections=8), *arrays)
    assert [array.shape for array in made] == [(0,), (0, 8, 4), (0, 8), (0, 8)]


def test_as_many_as_asked_for_and_no_more() -> None:
    boxes = np.arange(70, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], np.float32)
    scores = np.linspace(0.3, 0.9, 70, dtype=np.float32)[None, :, None]
    for most in (1, 31, 32, 33, 64, 70):
        count, found, *_ = assert_agrees(BOXES, boxes[None], scores, top_k=70, max_detections=most)
        assert count == [most]
        np.testing.assert_array_equal(found[0], boxes[::-1][:most])


def test_logits_are_ranked_as_they_are_and_reported_as_probabilities() -> None:
    (first, second) = detect([A, FAR], [30.0, 40.0], sigmoid=1)  # both are 1 as a float32 sigmoid
    assert (first[0], second[0]) == (FAR, A)
    assert first[1] == second[1] == 1.0
    assert detect([A, FAR], [-1.2, -1.0], sigmoid=1)[0][1] == pytest.approx(1 / (1 + np.exp(1)), rel=1e-6)
    assert len(detect([A, FAR], [-1.2, -80.0], sigmoid=1, score_threshold=0.0)) == 2


def onnx_detections(boxes: np.ndarray, scores: np.ndarray, *, iou: float, threshold: float, most: int) -> Results:
    """The same by ONNX's NonMaxSuppression, class by class, the best of all classes first."""
    names = ["boxes", "scores", "most", "iou", "threshold"]
    feed = dict(zip(names, (boxes, scores.transpose(0, 2, 1).copy(), np.array([len(boxes[0])]), iou, threshold)))
    arrays = {k: np.atleast_1d(np.asarray(v, np.int64 if k == "most" else np.float32)) for k, v in feed.items()}
    types = {k: TensorProto.INT64 if k == "most" else TensorProto.FLOAT for k in names}
    inputs = [helper.make_tensor_value_info(k, types[k], arrays[k].shape) for k in names]
    output = helper.make_tensor_value_info("chosen", TensorProto.INT64, [None, 3])
    graph = helper.make_graph([helper.make_node("NonMaxSuppression", names, ["chosen"])], "nms", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    with OrtSession(model.SerializeToString()) as session:
        chosen = session.run(arrays)["chosen"]
    _, label, at = chosen.T
    order = np.lexsort((label, at, -scores[0, at, label]))[:most]
    return boxes[0, at[order]], scores[0, at[order], label[order]], label[order]


@pytest.mark.parametrize("seed", range(6))
def test_it_is_onnxs_own_suppression(seed: int) -> None:
    call = BOXES.example((1, 90, 4), "float32", multi_label=1, center=0)
    boxes, scores = BOXES.sample(call, seed)
    want = onnx_detections(boxes, scores, iou=0.3, threshold=0.2, most=60)
    options: dict[str, Any] = {"iou_threshold": 0.3, "score_threshold": 0.2, "top_k": 360, "max_detections": 60}
    count, *got = BOXES.run_reference(boxes, scores, multi_label=1, **options)
    assert 10 < count[0] <= 60
    for mine, theirs in zip(got, want):
        np.testing.assert_array_equal(mine[0, : count[0]], theirs)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    candidates=st.integers(1, 150),
    attributes=st.sampled_from(
        [
            {"top_k": 64, "max_detections": 20},
            {"top_k": 100, "max_detections": 100, "score_threshold": 0.0, "multi_label": 1, "background": 1},
        ]
    ),
    bad=st.floats(0, 0.2),
    seed=st.integers(0, 2**16),
)
def test_any_number_of_candidates(images: int, candidates: int, attributes: Any, bad: float, seed: int) -> None:
    boxes, scores = BOXES.sample(BOXES.example((images, candidates, 6), "float32"), seed)
    rng = np.random.default_rng(seed)
    for array in (boxes, scores):
        spoilt = rng.random(array.shape) < bad / 4
        array[spoilt] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e38], np.float32), spoilt.sum())
    assert_agrees(BOXES, boxes, scores, seed=seed, **attributes)


@pytest.mark.parametrize(("op", "multi_label"), [(BOXES, 0), (HEAD, 0), (HEAD, 1), (ANCHORS, 0)])
def test_every_tactic_finds_the_same(op: DecodeNms, multi_label: int) -> None:
    call = op.example((2, 264, 9), "float16", multi_label=multi_label, top_k=600, max_detections=50)
    arrays = op.sample(call)
    tactics = op.tactics(call, 87)
    assert {tactic // 32 for tactic in tactics} == {32, 16}
    assert {tactic % 32 for tactic in tactics} == ({1} if multi_label else {1, 2, 4})
    for tactic in tactics:
        got = run_operator(op, call, *arrays, tactic=tactic, seed=tactic)
        assert_same(got, op.reference(call, *arrays), of_boxes=1e-5 * (op is ANCHORS))


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "random"])
def test_more_candidates_than_there_is_room_for(order: str) -> None:
    count = 6000
    rng = np.random.default_rng(1)
    scores = {
        "rising": np.linspace(0.3, 0.9, count),
        "falling": np.linspace(0.9, 0.3, count),
        "equal": np.full(count, 0.5),
        "random": rng.permutation(np.linspace(0.3, 0.9, count)),
    }[order].astype(np.float32)[None, :, None]
    boxes = np.zeros((1, count, 4), np.float32)
    boxes[0, :, 0] = np.arange(count) * 3
    boxes[0, :, 2:] = boxes[0, :, :2] + 10
    call = call_of(BOXES, boxes, scores, top_k=1024, max_detections=300)
    want = BOXES.reference(call, boxes, scores)
    assert want[0] == [300]
    assert_same(run_operator(BOXES, call, boxes, scores), want)


def test_offsets_from_anchors() -> None:
    anchors = np.array([[100, 50, 40, 20], [10, 10, 4, 4]], np.float32)
    offsets = np.array([[[1, -1, 0, 5 * np.log(2)], [0, 0, 0, 0]]], np.float32)
    scores = np.array([[[0.9, 0.6], [0.9, 0.3]]], np.float32)
    count, boxes, values, labels = ANCHORS.run_reference(offsets, scores, anchors, background=1)
    assert count == [2]
    np.testing.assert_allclose(boxes[0, 0], [104 - 20, 48 - 20, 104 + 20, 48 + 20], rtol=1e-6)
    np.testing.assert_allclose(boxes[0, 1], [8, 8, 12, 12], rtol=1e-6)
    np.testing.assert_allclose(values[0, :2], [0.6, 0.3], rtol=1e-6)
    assert labels[0, :3].tolist() == [1, 1, -1]
    offsets[0, 0, 2] = 1000.0  # a width that overflows is no box
    count, boxes, *_ = ANCHORS.run_reference(offsets, scores, anchors, background=1)
    assert count == [1]
    call = call_of(ANCHORS, offsets, scores, anchors, background=1)
    got = run_operator(ANCHORS, call, offsets, scores, anchors)
    np.testing.assert_allclose(got[1], boxes, rtol=1e-6)


def test_images_and_candidates_may_be_free() -> None:
    images, candidates = Size(index=0, axis=0), Size(index=0, axis=1)
    call = BOXES.call(
        TensorType("float16", (images, candidates, 4)), TensorType("float16", (images, candidates, 80)), top_k=50,
        max_detections=10,
    )  # fmt: skip
    plan = BOXES.plan(call, tactic=BOXES.tactics(call, 87)[0], sm=87)
    assert plan.grid_for([(3, 500, 4), (3, 500, 80)]) == (3, 1, 1)
    assert plan.scalars_for([(3, 500, 4), (3, 500, 80)]) == (3, 500)
    free = HEAD.call(TensorType("float16", (1, Size(index=0, axis=1), 99)))
    with pytest.raises(UnsupportedCallError, match="the number of classes must be known"):
        HEAD.tactics(free, 87)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_detector_is_exported_with_its_detections() -> None:
    torch = pytest.importorskip("torch")

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Conv1d(5, 4 + 3, 1)

        def forward(self, x: Any) -> Any:
            return ops.decode_nms_head(self.head(x) * 10, sigmoid=1, top_k=30, max_detections=12)

    module, example = Detector().eval(), torch.randn(2, 5, 40)
    model = ops.onnx_from_torch(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    assert [node.op_type for node in model.graph.node if node.domain == "edgekit"] == ["decode_nms_head"]
    with OrtSession(model.SerializeToString()) as session:
        for batch in (2, 1):
            got = list(session.run({session.inputs[0].name: example[:batch].numpy()}).values())
            with torch.no_grad():
                want = [tensor.numpy() for tensor in module(example[:batch])]
            assert want[0].min() > 0
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[3], want[3])
            for index in (1, 2):
                np.testing.assert_allclose(got[index], want[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "said"),
    [
        (BOXES, ((1, 8, 5), (1, 8, 3)), {}, "a box has 4 numbers, on the last axis"),
        (BOXES, ((1, 8, 4), (1, 9, 3)), {}, "they have the same images and candidates"),
        (BOXES, ((1, 8, 4), (2, 8, 3)), {}, "they have the same images and candidates"),
        (BOXES, ((1, 8, 4), (1, 8, 0)), {}, "there are no classes"),
        (BOXES, ((1, 0, 4), (1, 0, 3)), {}, "there are no candidates"),
        (BOXES, ((8, 4), (8, 3)), {}, "input 'boxes' has 2 dimensions"),
        (BOXES, ((1, -8, 4), (1, -8, 3)), {}, "negative size"),
        (BOXES, ((1, 2**26, 4), (1, 2**26, 32)), {}, "more than an index counts"),
        (BOXES, ((1, 8, 4), (1, 8, 3)), {"top_k": 5, "max_detections": 6}, "'max_detections' is above 'top_k'"),
        (BOXES, ((1, 8, 4), (1, 8, 3)), {"top_k": 1025}, "'top_k' is 1025; it must be at least 1 and at most 1024"),
        (BOXES, ((1, 8, 4), (1, 8, 3)), {"iou_threshold": 1.5}, "'iou_threshold' is 1.5"),
        (BOXES, ((1, 8, 4), (1, 8, 3)), {"score_threshold": float("nan")}, "'score_threshold' is nan"),
        (BOXES, ((1, 8, 4), (1, 8, 3)), {"sigmoid": 1, "score_threshold": 1}, "which no sigmoid is above"),
        (HEAD, ((1, 4, 8),), {}, "4 coordinates and at least one class, on axis 1"),
        (ANCHORS, ((1, 8, 4), (1, 8, 3), (7, 4)), {}, "each candidate has an anchor"),
        (ANCHORS, ((1, 8, 4), (1, 8, 3), (8, 4)), {"center": 1}, "no attribute 'center'"),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    op: DecodeNms, shapes: tuple[tuple[int, ...], ...], attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedCallError, match=f"{op.name}: .*{said}"):
        op.call(*(TensorType("float32", shape) for shape in shapes), **attributes)


def test_bfloat16_is_refused() -> None:
    with pytest.raises(UnsupportedCallError, match="input 'head' is bfloat16; it takes float32 or float16"):
        HEAD.call(TensorType("bfloat16", (1, 84, 8400)))
