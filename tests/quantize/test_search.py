from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.quantize.apply import quantize_package
from edgekit.quantize.calibrate import quiet
from edgekit.quantize.graph import Graph
from edgekit.quantize.judge import Judge
from edgekit.quantize.latency import timed
from edgekit.quantize.measure import Gap
from edgekit.quantize.prepare import prepared
from edgekit.quantize.search import SPARING, Search, best_scheme, heads, leave_float, portions
from edgekit.quantize.sensitivity import sensitivities, sensitivity_png, suspects
from edgekit.quantize.store import stale_parts, stored
from tests.quantize.nets import conv_net, images, model_of, random
from tests.quantize.packages import package_of
from tests.quantize.test_channels import hostile_conv_net
from tests.quantize.test_qdq import data_of


def searched(tmp_path: Path, model: onnx.ModelProto, *, plain: bool = False, budget: float = 5) -> Search:
    data = data_of(images(32))
    package = package_of(tmp_path / f"net{plain}.edge", model, data.inputs)
    ready = prepared(model)
    judge = Judge(package, ready, data, recipe=None, budget=budget)
    return best_scheme(ready, data, judge, method=None, progress=quiet, plain=plain)


def test_recovery_repairs_a_hostile_net_and_never_makes_a_net_worse(tmp_path: Path) -> None:
    plain = searched(tmp_path, hostile_conv_net(), plain=True)
    found = searched(tmp_path, hostile_conv_net())
    assert found.error < plain.error / 3
    assert any("equalisation" in step for step in found.scheme.steps)
    easy, easy_plain = searched(tmp_path / "a", conv_net()), searched(tmp_path / "b", conv_net(), plain=True)
    assert easy.error <= easy_plain.error


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()


def test_only_one_of_several_alternatives_is_kept(tmp_path: Path) -> None:
    search = searched(tmp_path, conv_net())
    ranges = [a for a in search.attempts if a.step.endswith(" ranges") and "," not in a.step]
    assert len(ranges) == 4
    assert sum(a.kept for a in ranges) <= 1


def test_layers_are_left_in_float_until_the_budget_holds(tmp_path: Path) -> None:
    search = searched(tmp_path, conv_net(), budget=0, plain=True)
    before = search.error
    leave_float(search)
    assert search.error < before
    assert 1 <= len(search.scheme.floats) <= 2, "never more than half of four products"
    assert not search.judge.verdict(search.scheme.for_cpu()).within


def test_layers_go_in_growing_portions_where_one_by_one_would_take_long() -> None:
    names = [f"layer{i}" for i in range(16)]
    assert portions(names, 0.01) == [[name] for name in names]
    slow = portions(names, 5.0)
    assert [len(p) for p in slow] == [1, 1, 2, 4, 8]
    assert [name for p in slow for name in p] == names
    assert portions([], 5.0) == []


def test_the_most_sensitive_layer_is_among_the_suspects(tmp_path: Path) -> None:
    search = searched(tmp_path, hostile_conv_net(), plain=True)
    worst = sensitivities(search.scheme, search.judge, rows=8)[0].node
    found = suspects(search.scheme, search.judge, wanted=1, rows=8)
    assert worst in found
    assert len(found) < len(sensitivities(search.scheme, search.judge, rows=8))


def test_a_model_that_is_wrong_too_often_on_some_rows_need_not_run_on_all(tmp_path: Path) -> None:
    judge = searched(tmp_path, conv_net(), budget=0.5).judge
    assert not judge.may_pass(Gap(0.1, 1.0, 0.9, None))
    assert judge.may_pass(Gap(0.004, 1.0, 0.9, None))


def test_a_model_without_products_is_refused(tmp_path: Path) -> None:
    model = model_of([onnx.helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ("batch", 3, 12, 12)}, ["y"])
    with pytest.raises(UsageError, match="no Conv, Gemm or MatMul"):
        searched(tmp_path, model)


def test_sensitivity_ranks_layers_and_draws_them(tmp_path: Path) -> None:
    search = searched(tmp_path, conv_net())
    found = sensitivities(search.scheme, search.judge)
    assert [s.operator for s in found].count("Conv") == 3
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    assert all(s.snr_db > 20 for s in found)
    assert sensitivity_png(found).startswith(b"\x89PNG")


def test_reports_are_written_on_request(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(16)})
    result = quantize_package(package, sensitivity=True, plain=True, max_drop=100)
    assert len(result.report.layers) == 4
    assert (package.path / "reports" / "sensitivity.png").stat().st_size > 1000
    assert b"snr_db" in (package.path / "reports" / "sensitivity.json").read_bytes()


def test_timing_is_of_both_models() -> None:
    model = prepared(conv_net())
    timing = timed(model, model, data_of(images(4)))
    assert timing.float_ms > 0
    assert timing.other_ms > 0


def test_both_forms_come_from_one_calibration_which_is_stored(tmp_path: Path) -> None:
    package = package_of(tmp_path / "net.edge", conv_net(), {"x": images(32)})
    made = quantize_package(package, max_drop=100).package
    assert {"int8", "int8-trt"} <= {v.id for v in made.manifest.variants}
    assert made.variant("int8").settings["steps"] == made.variant("int8-trt").settings["steps"]
    calibration = stored(made)
    assert calibration is not None
    assert calibration.weights_sha256 == made.reference.sha256
    assert calibration.ranges["x"].low == pytest.approx(float(images(32)[np.arange(32) % 4 != 3].min()), rel=0.3)
    assert calibration.ranges["x"].peak >= 0.9 * calibration.ranges["x"].high


def test_a_stale_calibration_is_named_and_not_used(tmp_path: Path) -> None:
    made = quantize_package(
        package_of(tmp_path / "net.edge", conv_net(), {"x": images(32)}), plain=True, max_drop=100
    ).package
    calibration = stored(made)
    assert calibration is not None
    data = data_of(images(32))
    assert stale_parts(calibration, made, data) == []
    other: Package = package_of(tmp_path / "other.edge", conv_net(weight_scale=0.3), {"x": images(32)})
    assert stale_parts(calibration, other, data_of(images(32, seed=9))) == ["weights", "data"]
    np.savez(tmp_path / "more.npz", x=images(40, seed=9))
    again = quantize_package(made, plain=True, max_drop=100, force=True, calib=tmp_path / "more.npz")
    assert any("made with other data: it was not used" in w for w in again.report.warnings)
    renewed = stored(again.package)
    assert renewed is not None
    assert renewed.data_sha256 != calibration.data_sha256


def test_layers_that_cost_little_in_float_are_spared_only_for_a_clear_gain(tmp_path: Path) -> None:
    search = searched(tmp_path, hostile_conv_net())
    spared = [a for a in search.attempts if a.step.endswith("in float")]
    errors = [a.error for a in search.attempts if a.kept]
    gains = [after / before for before, after in pairwise(errors) if after in {a.error for a in spared}]
    assert all(gain < SPARING for gain in gains)
    ready = prepared(conv_net())
    assert heads(Graph(ready)) == {n.name for n in ready.graph.node if n.op_type == "Gemm"}


def test_lstm_inputs_are_levelled_and_the_lstm_runs_in_dynamic_int8(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    factor = np.exp2(np.linspace(-5, 5, 24)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "w0"], ["e"]),
        node("Add", ["e", "b0"], ["f"]),
        node("Relu", ["f"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "u"], ["y"], hidden_size=16),
    ]
    weights = {
        "w0": random(12, 24, scale=0.4) * factor,
        "b0": random(24, scale=0.1) * factor,
        "w": random(1, 64, 24, scale=0.3) / factor,
        "u": random(1, 64, 16, scale=0.3),
    }
    x = random(32, 9, 12)
    package = package_of(tmp_path / "lstm.edge", model_of(nodes, weights, {"x": ("batch", 9, 12)}, ["y"]), {"x": x})
    result = quantize_package(package, max_drop=100)
    levelled = next(a for a in result.report.attempts if a.step.startswith("recurrent equalisation"))
    assert levelled.kept
    assert levelled.error < 1e-3
    dynamic = next(a for a in result.report.attempts if a.step == "LSTM in dynamic INT8")
    model = onnx.load(result.package.model_file(result.package.variant("int8")))
    assert ("DynamicQuantizeLSTM" in [n.op_type for n in model.graph.node]) == dynamic.kept


def wide_net(blocks: int = 4) -> onnx.ModelProto:
    """Convolutions of 16 channels, which TensorRT's form quantises too."""
    nodes, weights, last = [], {}, "x"
    for i in range(blocks):
        weights[f"w{i}"] = random(16, 3 if i == 0 else 16, 3, 3, scale=0.2, seed=i)
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1], name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"a{i}"], name=f"relu{i}"))
        last = f"a{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    return prepared(model_of(nodes, weights, {"x": ("batch", 3, 12, 12)}, ["y"]))


def test_tensorrts_form_leaves_more_layers_in_fp16_where_its_budget_asks_for_it(tmp_path: Path) -> None:
    package = package_of(tmp_path / "wide.edge", wide_net(), data_of(images(32)).inputs)
    first = quantize_package(package, max_drop=100)
    loose = first.report.variants[1]
    result = quantize_package(first.package, max_drop=0.9 * loose.drop, force=True)
    form, tight = result.package.variant("int8-trt").settings, result.report.variants[1]
    assert form["float_layers"]
    assert tight.drop < loose.drop
    tried = [a for a in result.report.attempts if a.step.endswith("(int8-trt)")]
    assert {a.step.split()[0] for a in tried if a.kept} <= set(form["float_layers"])


def test_a_layer_in_float_is_not_rounded_by_onnx_runtime(tmp_path: Path) -> None:
    graph = Graph(wide_net())
    silent, loud = graph.constants["w0"].copy(), graph.constants["w1"].copy()
    silent[5], loud[:, 5] = 0, 50  # a channel that is always zero, met by weights that spoil one scale for all
    graph.set_constant("w0", silent)
    graph.set_constant("w1", loud)
    search = searched(tmp_path, graph.model(), plain=True)
    mixed = replace(search.scheme, floats=frozenset({"conv1"})).for_cpu()
    assert search.judge.gap(mixed).error < 1.1 * search.judge.gap(mixed, literal=True).error
