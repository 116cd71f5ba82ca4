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
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.fuse import fused
from plugins_trt.nodes import with_plugins
from plugins_trt.operator import TensorType
from plugins_trt.registry import operators
from plugins_trt.roi_align import RoiAlign
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

ONE = RoiAlign(1)
FPN = RoiAlign(4)


def call_of(op: RoiAlign, *arrays: np.ndarray, **attributes: Any) -> Any:
    return op.call(*(TensorType(a.dtype.name, a.shape) for a in arrays), **attributes)


def assert_agrees(op: RoiAlign, *arrays: np.ndarray, tactic: int | None = None, **attributes: Any) -> np.ndarray:
    """The reference's result, which the kernel and the function body have too."""
    call = call_of(op, *arrays, **attributes)
    want = op.reference(call, *arrays)
    assert_close(run_operator(op, call, *arrays, tactic=tactic), want)
    with OrtSession(model_of(op, call).SerializeToString()) as session:
        made = session.run({port.name: array for port, array in zip(op.inputs, arrays)})
    assert_close([made["y"]], want)
    return np.asarray(want[0])


def onnx_model(*arrays: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    """A model of ONNX's own operator."""
    names, kinds = ["x", "rois", "at"], [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64]
    inputs = [helper.make_tensor_value_info(n, k, a.shape) for n, k, a in zip(names, kinds, arrays)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([helper.make_node("RoiAlign", names, ["y"], **attributes)], "roi", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, *arrays: np.ndarray) -> np.ndarray:
    with OrtSession(model.SerializeToString()) as session:
        return np.asarray(session.run(dict(zip(("x", "rois", "at"), arrays)))["y"])


def given_of(shape: tuple[int, int, int, int], regions: int, seed: int = 0, scale: float = 0.25) -> list[np.ndarray]:
    call = ONE.example(shape, regions, "float32", spatial_scale=scale)
    return list(ONE.sample(call, seed))


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_it_is_onnxs_own_roi_align(aligned: int, sampling_ratio: int) -> None:
    arrays = given_of((3, 4, 21, 30), 40)
    size = {"output_height": 5, "output_width": 6, "sampling_ratio": sampling_ratio, "spatial_scale": 0.25}
    mode = "half_pixel" if aligned else "output_half_pixel"
    want = run(onnx_model(*arrays, coordinate_transformation_mode=mode, **size), *arrays)
    (got,) = ONE.run_reference(*arrays, aligned=aligned, most_samples=64, **size)
    assert_close([got], [want])


@pytest.mark.parametrize("attributes", [{}, {"coordinate_transformation_mode": "output_half_pixel", "output_width": 3}])
def test_it_stands_for_onnxs_own_node(attributes: dict[str, Any]) -> None:
    arrays = given_of((2, 3, 12, 14), 9)
    given = onnx_model(*arrays, output_height=4, sampling_ratio=2, spatial_scale=0.25, **attributes)
    made, fusions = fused(given, operators().values())
    assert [fusion.operator for fusion in fusions] == ["roi_align"]
    assert [node.op_type for node in made.graph.node] == ["roi_align"]
    onnx.checker.check_model(made, full_check=True)
    assert_close([run(made, *arrays)], [run(given, *arrays)])
    assert with_plugins(made, operators(), sm=87).used[0].operator == "roi_align"


@pytest.mark.parametrize("attributes", [{"sampling_ratio": 0}, {"sampling_ratio": 2, "mode": "max"}])
def test_what_it_does_not_stand_for_stays(attributes: dict[str, Any]) -> None:
    made, fusions = fused(onnx_model(*given_of((1, 3, 9, 9), 2), **attributes), operators().values())
    assert not fusions
    assert [node.op_type for node in made.graph.node] == ["RoiAlign"]


def test_where_bins_decide_on_samples_only_the_kernel_stands_for_it() -> None:
    arrays = given_of((1, 3, 40, 50), 9)
    given = onnx_model(*arrays, sampling_ratio=0, output_height=3, output_width=2, spatial_scale=0.25)
    plugged = with_plugins(given, operators(), sm=87, fuse=True)
    (node,) = plugged.model.graph.node
    assert plugged.used[0].operator == node.op_type == "roi_align"
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (values["sampling_ratio"], values["most_samples"]) == (0, 64)
    names = ("output_height", "output_width", "sampling_ratio", "most_samples", "aligned", "spatial_scale")
    (got,) = ONE.run_reference(*arrays, **{name: values[name] for name in names})
    assert_close([got], [run(given, *arrays)])


@pytest.mark.parametrize(("opset", "aligned"), [(15, 0), (16, 1)])
def test_before_operator_set_16_coordinates_are_not_aligned(opset: int, aligned: int) -> None:
    given = onnx_model(*given_of((1, 3, 9, 9), 2), sampling_ratio=2)
    given.opset_import[0].version = opset
    (node,) = with_plugins(given, operators(), sm=87, fuse=True).model.graph.node
    assert {a.name: a.i for a in node.attribute}["aligned"] == aligned


def test_samples_by_the_bin_are_counted_up_to_the_most() -> None:
    arrays = given_of((1, 2, 40, 40), 12)
    size: dict[str, Any] = {"output_height": 2, "output_width": 2, "spatial_scale": 0.25}
    few = assert_agrees(ONE, *arrays, sampling_ratio=0, most_samples=3, **size)
    (many,) = ONE.run_reference(*arrays, sampling_ratio=0, most_samples=64, **size)
    (fixed,) = ONE.run_reference(*arrays, sampling_ratio=3, **size)
    large = (arrays[1][:, 2:] - arrays[1][:, :2]).min(axis=1) * 0.25 / 2 > 3
    assert large.any()
    np.testing.assert_array_equal(few[large], fixed[large])
    assert not np.allclose(few[large], many[large])


def test_a_constant_map_is_constant_and_a_ramp_is_its_middle() -> None:
    x = np.full((1, 1, 16, 16), 3.0, np.float32)
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (1, 1, 16, 16)).copy()
    rois, at = np.array([[2, 3, 10, 7]], np.float32), np.zeros(1, np.int64)
    assert_close([assert_agrees(ONE, x, rois, at)], [np.full((1, 1, 7, 7), 3.0, np.float32)])
    got = assert_agrees(ONE, ramp, rois, at, output_height=2, output_width=4)
    np.testing.assert_allclose(got[0, 0, 0], 2 + 2 * np.arange(4) + 1 - 0.5, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    regions=st.integers(0, 6),
    attributes=st.sampled_from(
        [
            {"output_height": 3, "output_width": 2},
            {"output_height": 5, "output_width": 5, "sampling_ratio": 0, "aligned": 0},
        ]
    ),
    bad=st.floats(0, 0.3),
    seed=st.integers(0, 2**16),
)
def test_any_size(shape: tuple[int, int, int, int], regions: int, attributes: Any, bad: float, seed: int) -> None:
    arrays = given_of(shape, regions, seed)
    rng = np.random.default_rng(seed)
    spoilt = rng.random(arrays[1].shape) < bad
    arrays[1][spoilt] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, -5, 1e30], np.float32), spoilt.sum())
    arrays[2][rng.random(regions) < bad] = rng.choice([-1, shape[0], 2**40])
    assert_agrees(ONE, *arrays, spatial_scale=0.25, **attributes)


def test_what_has_no_weight_is_not_looked_at() -> None:
    x, rois, at = np.ones((1, 2, 8, 8), np.float32), np.array([[0, 0, 4, 4]], np.float32), np.zeros(1, np.int64)
    x[0, :, 4:], x[0, 0, 0, 0] = np.nan, np.inf
    got = assert_agrees(ONE, x, rois, at, output_height=2, output_width=2, sampling_ratio=1, aligned=0)
    # samples at 1 and 3: exactly on pixels, so that neither row 4 nor pixel 0 counts
    np.testing.assert_array_equal(got, np.ones((1, 2, 2, 2), np.float32))
    got = assert_agrees(ONE, x, rois + 1, at, output_height=2, output_width=2, sampling_ratio=1, aligned=0)
    assert np.isnan(got[0, :, 1]).all()
    assert (got[0, :, 0] == 1).all()


def test_regions_off_the_map_and_images_that_are_not_there_are_zero() -> None:
    x = np.ones((2, 3, 8, 8), np.float32)
    rois = np.array([[20, 20, 30, 30], [0, 0, 4, 4], [0, 0, 4, 4], [np.nan, 0, 4, 4], [0, 0, 4, 4]], np.float32)
    got = assert_agrees(ONE, x, rois, np.array([0, 2, -1, 1, 1]), output_height=2, output_width=2)
    assert not got[:4].any()
    assert (got[4] == 1).all()


@pytest.mark.parametrize("attributes", [{"aligned": 0}, {"aligned": 1}, {"aligned": 0, "sampling_ratio": 0}])
@pytest.mark.parametrize("end", [0, 1, 2, 3])
def test_a_region_with_an_end_that_is_nan_is_zero(end: int, attributes: dict[str, int]) -> None:
    x, rois = np.ones((1, 1, 4, 4), np.float32), np.array([[1, 1, 3, 3]], np.float32)
    rois[0, end] = np.nan
    got = assert_agrees(ONE, x, rois, np.zeros(1, np.int64), output_height=2, output_width=2, **attributes)
    assert not got.any()


def test_an_empty_region_is_the_point_where_it_lies() -> None:
    x = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    rois, at = np.array([[3.5, 2.5, 3.5, 2.5]], np.float32), np.zeros(1, np.int64)
    value = assert_agrees(ONE, x, rois, at)
    assert (value == 2 * 8 + 3).all()
    value = assert_agrees(ONE, x, rois, at, sampling_ratio=0)
    assert not value.any()  # a bin of no pixels has no samples


def test_no_regions() -> None:
    arrays = given_of((1, 3, 8, 8), 0)
    assert run_operator(ONE, call_of(ONE, *arrays), *arrays)[0].shape == (0, 3, 7, 7)


def pyramid(regions: np.ndarray, channels: int = 2) -> list[np.ndarray]:
    """Four maps of which each is full of its own number."""
    maps = [np.full((1, channels, 64 >> level, 64 >> level), level, np.float32) for level in range(4)]
    return [*maps, regions.astype(np.float32), np.zeros(len(regions), np.int64)]


SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def test_each_region_is_read_from_its_level() -> None:
    rng = np.random.default_rng(2)
    sizes = np.exp(rng.uniform(np.log(4), np.log(900), (200, 2)))
    regions = np.concatenate([128 - sizes / 2, 128 + sizes / 2], axis=1).astype(np.float32)
    got = FPN.run_reference(*pyramid(regions), spatial_scales=SCALES, output_height=1, output_width=1, sampling_ratio=1)
    area = (regions[:, 2] - regions[:, 0]) * (regions[:, 3] - regions[:, 1])
    level = np.clip(np.floor(4 + np.log2(np.sqrt(area.astype(np.float64)) / 224) + 1e-6), 2, 5) - 2
    assert set(level) == {0, 1, 2, 3}
    np.testing.assert_array_equal(got[0][:, 0, 0, 0], level)


def test_a_region_on_the_border_of_two_levels_is_of_the_upper() -> None:
    side = np.array([112, 111.99, 224, 223.99, 448, 447.9, 56])
    regions = np.stack([side * 0 + 8, side * 0 + 8, side + 8, side + 8], axis=1)
    got = assert_agrees(FPN, *pyramid(regions), spatial_scales=SCALES, output_height=2, output_width=2)
    np.testing.assert_allclose(got[:, 0, 0, 0], [1, 0, 2, 1, 3, 2, 0], rtol=1e-6)


def test_areas_that_are_not_numbers_or_negative_are_of_the_first_level() -> None:
    regions = np.array([[8, 8, 4, 40], [np.nan, 8, 40, 40], [40, 40, 8, 8]])
    arrays = pyramid(regions)
    arrays[0][:] = 7
    got = assert_agrees(FPN, *arrays, spatial_scales=SCALES, output_height=2, output_width=2)
    assert (got[0] == 7).all()
    assert not got[1].any()
    assert (got[2] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_tactic_gives_the_same(dtype: str) -> None:
    for op, bins in ((FPN, 3), (ONE, 17)):
        call = op.example((2, 21, 20, 24), 5, dtype, output_height=bins, output_width=bins)
        arrays = op.sample(call)
        for tactic in op.tactics(call, 87):
            assert_close(run_operator(op, call, *arrays, tactic=tactic), op.reference(call, *arrays))


def test_regions_in_half_precision_and_indices_in_32_bits() -> None:
    x, rois, at = given_of((2, 3, 9, 9), 5)
    assert_agrees(ONE, x, rois.astype(np.float16), at.astype(np.int32), spatial_scale=0.25)


def test_every_size_but_the_outputs_may_be_free() -> None:
    x = TensorType("float16", tuple(Size(index=0, axis=axis) for axis in range(4)))
    regions = Size(index=1, axis=0)
    call = ONE.call(x, TensorType("float32", (regions, 4)), TensorType("int64", (regions,)))
    plan = ONE.plan(call, tactic=4, sm=87)
    shapes = [(2, 100, 30, 40), (11, 4), (11,)]
    assert plan.grid_for(shapes) == (11, 5, 1)
    assert plan.scalars_for(shapes) == (11, 2, 100, 30, 40)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_second_stage_is_exported_for_any_number_of_regions() -> None:
    torch = pytest.importorskip("torch")

    class Stage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(3, 4, 3, stride=2**i, padding=1) for i in (0, 1))

        def forward(self, image: Any, rois: Any, at: Any) -> Any:
            maps = [convolution(image) for convolution in self.convolutions]
            return ops.roi_align_fpn2(*maps, rois, at, spatial_scales=[1.0, 0.5], canonical_scale=20.0, first_level=3)

    rois = torch.rand(6, 2).mul(16).repeat(1, 2) + torch.tensor([0, 0, 5, 6]) * torch.arange(1, 7)[:, None]
    example = torch.randn(1, 3, 32, 32), rois, torch.zeros(6, dtype=torch.int64)
    count = torch.export.Dim("regions")
    module = Stage().eval()
    model = ops.onnx_from_torch(module, example, dynamic_shapes=(None, {0: count}, {0: count}), verbose=False)
    assert [node.op_type for node in model.graph.node if node.domain == "edgekit"] == ["roi_align_fpn2"]
    with OrtSession(model.SerializeToString()) as session:
        for regions in (6, 2):
            given = (example[0], example[1][:regions], example[2][:regions])
            feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.inputs, given)}
            with torch.no_grad():
                assert_close(list(session.run(feed).values()), [module(*given).numpy()], relative=1e-4)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "said"),
    [
        (ONE, ((1, 3, 8), (2, 4), (2,)), {}, "input 'x' has 3 dimensions"),
        (ONE, ((1, 3, 8, 8), (2, 5), (2,)), {}, "a region has 4 numbers"),
        (ONE, ((1, 3, 8, 8), (2, 4), (3,)), {}, "each region has an image"),
        (ONE, ((1, 3, 0, 8), (2, 4), (2,)), {}, "there is nothing in it"),
        (ONE, ((1, 3, -8, 8), (2, 4), (2,)), {}, "negative size"),
        (ONE, ((1, 3, 8, 8), (2, 4), (2,)), {"output_height": 0}, "'output_height' is 0"),
        (ONE, ((1, 3, 8, 8), (2, 4), (2,)), {"sampling_ratio": -1}, "'sampling_ratio' is -1"),
        (FPN, ((1, 3, 8, 8),) * 4 + ((2, 4), (2,)), {"spatial_scales": (0.5,)}, "1 values for 4 feature maps"),
        (FPN, ((1, 3, 8, 8),) * 4 + ((2, 4), (2,)), {}, "'spatial_scales' is missing"),
        (
            FPN,
            ((1, 3, 8, 8),) * 3 + ((1, 2, 8, 8), (2, 4), (2,)),
            {"spatial_scales": SCALES},
            "same images and channels",
        ),
    ],
)
def test_calls_that_do_not_fit_are_refused(
    op: RoiAlign, shapes: tuple[tuple[int, ...], ...], attributes: dict[str, Any], said: str
) -> None:
    types = [TensorType("float32" if len(shape) > 1 else "int64", shape) for shape in shapes]
    with pytest.raises(UnsupportedCallError, match=f"{op.name}: .*{said}"):
        op.call(*types, **attributes)


def test_float_indices_are_refused() -> None:
    x, rois = TensorType("float32", (1, 3, 8, 8)), TensorType("float32", (2, 4))
    with pytest.raises(UnsupportedCallError, match="'batch_indices' is float32; it takes int64 or int32"):
        ONE.call(x, rois, TensorType("float32", (2,)))
