from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plugins_trt.torch as ops
from edgekit.preprocess import ImagePreprocess
from edgekit.runtime.ort import OrtSession
from plugins_trt.body import model_of
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.letterbox_normalize import LetterboxNormalize, content_size
from plugins_trt.nodes import with_plugins
from plugins_trt.operator import TensorType
from plugins_trt.registry import operators
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

RGB = LetterboxNormalize(nv12=False)
NV12 = LetterboxNormalize(nv12=True)


def frames(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def assert_agrees(
    op: LetterboxNormalize, frame: np.ndarray, *, tactic: int | None = None, **attributes: Any
) -> np.ndarray:
    call = op.call(TensorType("uint8", frame.shape), **attributes)
    want = op.reference(call, frame)
    assert_close(run_operator(op, call, frame, tactic=tactic), want)
    return np.asarray(want[0])


@settings(max_examples=60, deadline=None)
@given(
    frame=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=st.sampled_from(["letterbox", "stretch"]),
    color=st.sampled_from(["RGB", "BGR", "L"]),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_packages_own_preprocessing(
    frame: tuple[int, int], target: tuple[int, int], resize: Any, color: Any, seed: int
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    channels = 1 if color == "L" else 3
    mean, std = ((0.5,), (0.25,)) if color == "L" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = frames((*frame, channels), seed)
    declared = ImagePreprocess(
        height=target[0], width=target[1], resize=resize, color=color, mean=mean, std=std, pad=114.0
    )
    want = declared.from_image(image_module.fromarray(pixels.squeeze(2) if channels == 1 else pixels))
    (got,) = RGB.run_reference(
        pixels[None], height=target[0], width=target[1], mean=mean, std=std, pad=114.0,
        keep_aspect=int(resize == "letterbox"), swap=int(color == "BGR"),
    )  # fmt: skip
    # Pillow rounds to whole pixel values after columns and after rows: half a step each.
    off = np.abs(got.astype(np.float64) - want) * np.reshape(std, (1, -1, 1, 1)) * 255
    assert off.max() <= 1.001


@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize(("size", "target"), [((45, 80), (40, 40)), ((13, 9), (64, 31)), ((30, 200), (16, 50))])
def test_it_is_pytorchs_interpolate_and_pad(size: tuple[int, int], target: tuple[int, int], antialias: int) -> None:
    torch = pytest.importorskip("torch")
    frame = frames((2, *size, 3))
    (got,) = RGB.run_reference(frame, height=target[0], width=target[1], scale=1.0, pad=7.0, antialias=antialias)
    planes = torch.from_numpy(frame).permute(0, 3, 1, 2).float()
    height, width = content_size(size, target)
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=bool(antialias))
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    padding = (left, target[1] - width - left, top, target[0] - height - top)
    want = torch.nn.functional.pad(resized, padding, value=7.0)
    assert_close([got], [want.numpy()], relative=1e-4)


@settings(max_examples=300, deadline=None)
@given(*[st.integers(1, 5000)] * 2, *[st.integers(1, 1300)] * 2)
def test_the_content_fills_one_side_and_fits_the_other(h: int, w: int, height: int, width: int) -> None:
    rows, columns = content_size((h, w), (height, width))
    assert rows == height or columns == width
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    exact = min(height / h, width / w)
    assert abs(rows - h * exact) <= 0.5 + 1e-9 or rows == 1
    assert abs(columns - w * exact) <= 0.5 + 1e-9 or columns == 1


def test_halves_are_rounded_to_even() -> None:
    assert content_size((719, 1280), (640, 640)) == (360, 640)
    assert content_size((721, 1280), (640, 640)) == (360, 640)
    assert content_size((1190, 2176), (416, 416)) == (228, 416)  # 227.5; in float64 it would be 227.49999999999997


@pytest.mark.parametrize("to", [1, 10])
def test_every_tactic_gives_the_same_picture(to: int) -> None:
    frame = frames((2, 37, 64, 3), 1)
    attributes: dict[str, Any] = {"height": 24, "width": 48, "to": to, "pad": 114.0}
    tactics = RGB.tactics(RGB.call(TensorType("uint8", frame.shape), **attributes), 87)
    assert len(tactics) == 5
    for tactic in tactics:
        assert_agrees(RGB, frame, tactic=tactic, **attributes)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    frame=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    to=st.sampled_from([1, 10]),
    flags=st.tuples(*[st.integers(0, 1)] * 4),
)
def test_any_size_to_any_size(
    frame: tuple[int, int, int, int], height: int, width: int, to: int, flags: tuple[int, int, int, int]
) -> None:
    names = ("antialias", "keep_aspect", "centered", "swap")
    assert_agrees(RGB, frames(frame), height=height, width=width, to=to, pad=99.5, **dict(zip(names, flags)))


def test_a_wide_frame_is_taken_in_narrow_tiles() -> None:
    frame = frames((1, 4, 16000, 3))
    call = RGB.call(TensorType("uint8", frame.shape), height=1, width=48)
    plan = RGB.plan(call, tactic=1, sm=75)
    assert plan.constants["TILE_X"] < 48
    assert plan.shared_bytes <= 24 * 1024
    assert_agrees(RGB, frame, height=1, width=48)
    with pytest.raises(UnsupportedCallError, match=r"shrinks too much.*two steps"):
        RGB.plan(RGB.call(TensorType("uint8", (1, 4, 16000, 3)), height=1, width=1), tactic=1, sm=87)


def test_a_grey_frame_stays_grey_and_black_and_white_are_exact() -> None:
    frame = np.full((1, 12, 8), 128, np.uint8)
    for luma, pixel in ((16, 0.0), (235, 255.0), (0, 0.0), (255, 255.0)):
        frame[:, :8] = luma
        np.testing.assert_allclose(assert_agrees(NV12, frame, height=5, width=5, scale=1.0), pixel, atol=1e-4)
    frame[:, :8] = 77
    np.testing.assert_allclose(assert_agrees(NV12, frame, height=4, width=4, scale=1.0, full_range=1), 77.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "full", "red"),
    [(601, 0, (82, 90, 240)), (709, 0, (63, 102, 240)), (601, 1, (76, 85, 255)), (2020, 1, (67, 92, 255))],
)
def test_red_is_red(matrix: int, full: int, red: tuple[int, int, int]) -> None:
    frame = np.empty((1, 6, 4), np.uint8)
    frame[:, :4], frame[:, 4:, 0::2], frame[:, 4:, 1::2] = red
    got = assert_agrees(NV12, frame, height=4, width=4, scale=1.0, matrix=matrix, full_range=full)
    # what the standards give pure red, which these whole numbers miss by up to 0.5 of luma and chroma
    np.testing.assert_allclose(got[0, :, 0, 0], (255, 0, 0), atol=2.0)
    swapped = assert_agrees(NV12, frame, height=4, width=4, scale=1.0, matrix=matrix, full_range=full, swap=1)
    np.testing.assert_array_equal(swapped, got[:, ::-1])


def test_chroma_lies_between_its_four_pixels() -> None:
    frame = np.full((1, 6, 8), 100, np.uint8)
    frame[:, 4:, 1::2] = [128, 128, 228, 228]  # red difference: none in the left half, much in the right
    got = assert_agrees(NV12, frame, height=4, width=8, scale=1.0, full_range=1)[0, 0, 0]
    step = 1.402 * 100
    expected = [100, 100, 100, 100 + step / 4, 100 + 3 * step / 4, 100 + step, 100 + step, 100 + step]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(("op", "shape"), [(RGB, (2, 9, 14, 3)), (NV12, (2, 12, 14))])
def test_the_same_bytes_as_int8_are_the_same_frame(op: LetterboxNormalize, shape: tuple[int, ...]) -> None:
    frame = frames(shape, 3)
    call = op.call(TensorType("int8", frame.shape), height=8, width=10)
    want = op.run_reference(frame, height=8, width=10)
    assert_close(run_operator(op, call, frame.view(np.int8)), want)
    with OrtSession(model_of(op, call).SerializeToString()) as session:
        assert_close([session.run({"frame": frame.view(np.int8)})["y"]], want)


def test_tensorrt_gets_it_as_a_plugin_for_int8_and_as_its_function_for_uint8() -> None:
    calls = {dtype: RGB.example((1, 9, 14), dtype=dtype, height=8, width=8) for dtype in ("int8", "uint8")}
    made = {dtype: with_plugins(model_of(RGB, call), operators(), sm=87) for dtype, call in calls.items()}
    assert [use.inputs for use in made["int8"].used] == ["int8[1, 9, 14, 3]"]
    assert not made["uint8"].used
    (refusal,) = made["uint8"].refused
    assert "TensorRT gives plugins no uint8, as input 'frame' is; give it the same bytes as int8" in refusal.reason


def test_no_frames_and_a_free_number_of_frames() -> None:
    call = RGB.call(TensorType("uint8", (0, 9, 9, 3)), height=4, width=4)
    (made,) = run_operator(RGB, call, frames((0, 9, 9, 3)))
    assert made.shape == (0, 3, 4, 4)
    free = RGB.call(TensorType("uint8", (Size(index=0, axis=0), 9, 9, 3)), height=4, width=4)
    plan = RGB.plan(free, tactic=1, sm=87)
    assert plan.grid_for([(5, 9, 9, 3)]) == (1, 1, 5)
    assert plan.scalars_for([(5, 9, 9, 3)]) == (5,)
    assert plan.constants == RGB.plan(call, tactic=1, sm=87).constants


def test_a_free_frame_size_is_left_to_the_function_body() -> None:
    shape = (1, Size(index=0, axis=1), Size(index=0, axis=2), 3)
    call = RGB.call(TensorType("uint8", shape), height=12, width=16, pad=50.0)
    for step in (lambda: RGB.tactics(call, 87), lambda: RGB.plan(call, tactic=1, sm=87)):
        with pytest.raises(UnsupportedCallError, match="the frame's height must be known when the engine is built"):
            step()
    with OrtSession(model_of(RGB, call).SerializeToString()) as session:
        for size in ((9, 31), (40, 16)):
            frame = frames((1, *size, 3))
            want = RGB.run_reference(frame, height=12, width=16, pad=50.0)
            assert_close([session.run({"frame": frame})["y"]], want)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_model_that_starts_at_the_camera_is_exported_with_it() -> None:
    torch = pytest.importorskip("torch")

    class Camera(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 4, 3)

        def forward(self, frame: Any) -> Any:
            return self.convolution(ops.letterbox_normalize_nv12(frame, height=16, width=24, mean=[0.5], std=[0.25]))

    module, frame = Camera().eval(), torch.from_numpy(frames((2, 30, 28)))
    model = ops.onnx_from_torch(module, (frame,), dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    assert [node.op_type for node in model.graph.node if node.domain == "edgekit"] == ["letterbox_normalize_nv12"]
    with OrtSession(model.SerializeToString()) as session:
        for given in (frame, frame[:1]):
            (got,) = session.run({session.inputs[0].name: given.numpy()}).values()
            with torch.no_grad():
                assert_close([got], [module(given).numpy()], relative=1e-4)


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "said"),
    [
        (RGB, (1, 8, 8), {}, r"input 'frame' has 3 dimensions, uint8\[1, 8, 8\]; it takes 4"),
        (RGB, (1, 8, 8, 2), {}, "it has 1, 3 or 4 channels, the last dimension"),
        (RGB, (1, 0, 8, 3), {}, "there are no pixels in it"),
        (RGB, (1, -8, 8, 3), {}, "negative size"),
        (RGB, (1, 8, 20000, 3), {}, "a side can have 16384 pixels"),
        (RGB, (1, 8, 8, 3), {"height": 0}, "'height' is 0; it must be at least 1 and at most 16384"),
        (RGB, (1, 8, 8, 3), {"height": None}, "'height' is missing"),
        (RGB, (1, 8, 8, 3), {"mean": (0.0, 1.0)}, "'mean' has 2 values for 3 channels"),
        (RGB, (1, 8, 8, 1), {"std": (1.0, 1.0, 1.0)}, "'std' has 3 values for 1 channels"),
        (RGB, (1, 8, 8, 3), {"std": (0.0,)}, "'std' has a 0 in it"),
        (RGB, (1, 8, 8, 3), {"to": 11}, "'to' is 11; it can be 1, 10"),
        (RGB, (1, 8, 8, 3), {"pad": 256}, "'pad' is 256.0; it must be at least 0 and at most 255"),
        (RGB, (1, 8, 8, 3), {"matrix": 709}, "no attribute 'matrix'"),
        (NV12, (1, 8, 8), {}, "3 rows for every 2 of the picture"),
        (NV12, (1, 9, 7), {}, "NV12 has an even width"),
        (NV12, (1, 9, 8), {"matrix": 240}, "'matrix' is 240; it can be 601, 709, 2020"),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    op: LetterboxNormalize, shape: tuple[int, ...], attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedCallError, match=said):
        op.call(TensorType("uint8", shape), **{"height": 8, "width": 8, **attributes})


def test_a_float_frame_is_refused() -> None:
    with pytest.raises(UnsupportedCallError, match="input 'frame' is float32; it takes uint8 or int8"):
        RGB.call(TensorType("float32", (1, 8, 8, 3)), height=8, width=8)


def test_the_cost_counts_each_row_that_has_a_weight_once() -> None:
    thorough, quick = (RGB.example((1, 1080, 1920), height=640, width=640, to=10, antialias=a) for a in (1, 0))
    written = 3 * 640 * 640 * 2
    assert (RGB.cost(thorough).bytes_read, RGB.cost(thorough).bytes_written) == (1080 * 1920 * 3, written)
    assert RGB.cost(quick).bytes_read == 360 * 1920 * 3  # scale 3: the middle one of three rows has all the weight
