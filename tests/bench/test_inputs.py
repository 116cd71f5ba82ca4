from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.inputs import MOST_FEEDS, bench_inputs
from edgekit.errors import UsageError
from edgekit.manifest import SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.preprocess import ImagePreprocess
from edgekit.tensors import TensorSpec, check_feed
from tests.tiny import tiny_manifest, tiny_model


def package_of(
    path: Path, *inputs: TensorSpec, samples: dict[str, np.ndarray] | None = None, **fields: object
) -> Package:
    """A package that declares these inputs; its model is not run here."""
    if samples is not None:
        fields["samples"] = SampleSet(count=len(next(iter(samples.values()))), source="recipe")
    with create(path) as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model().SerializeToString())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        if samples is not None:
            writer.write_samples(samples, {})
        return writer.commit(tiny_manifest(inputs=tuple(map(Tensor.of, inputs)), **fields))


def test_real_samples_fill_every_batch(tiny: Package) -> None:
    inputs = bench_inputs(tiny)
    assert (inputs.real, inputs.source) == (True, "16 real samples of the package")
    x = tiny.samples().inputs["x"]
    first, second = inputs.feeds(3)[:2]
    np.testing.assert_array_equal(first["x"], x[:3])
    np.testing.assert_array_equal(second["x"], x[3:6])
    np.testing.assert_array_equal(inputs.feeds(40)[0]["x"], np.concatenate([x, x, x])[:40])
    assert len(inputs.feeds(1)) == MOST_FEEDS


def test_a_batch_behind_another_axis_is_followed(tmp_path: Path) -> None:
    samples = {
        "x": np.arange(12, dtype=np.float32).reshape(6, 2),
        "state": np.arange(48, dtype=np.float32).reshape(2, 6, 4),
    }
    package = package_of(
        tmp_path / "r.edge",
        TensorSpec("x", "float32", ("batch", 2)),
        TensorSpec("state", "float32", (2, "batch", 4)),
        samples=samples,
    )
    feed = bench_inputs(package).feeds(4)[1]
    check_feed(feed, package.manifest.input_specs)
    np.testing.assert_array_equal(feed["state"], samples["state"][:, [4, 5, 0, 1]])


def test_a_fixed_batch_is_fed_block_by_block(tmp_path: Path) -> None:
    samples = {"x": np.arange(12, dtype=np.float32).reshape(6, 2)}
    package = package_of(tmp_path / "f.edge", TensorSpec("x", "float32", (2, 2)), samples=samples)
    inputs = bench_inputs(package)
    assert not inputs.dynamic
    assert [f["x"].tolist() for f in inputs.feeds(1)] == samples["x"].reshape(3, 2, 2).tolist()


def test_without_samples_every_kind_of_input_is_made_up_and_said_so(tmp_path: Path) -> None:
    package = package_of(
        tmp_path / "s.edge",
        TensorSpec("image", "float32", ("batch", 3, "h", "w")),
        TensorSpec("ids", "int64", ("batch", 5)),
        TensorSpec("h0", "float32", (1, "batch", 7)),
        TensorSpec("rate", "int64", ()),
        TensorSpec("pixels", "uint8", ("batch", 4)),
        TensorSpec("half", "bfloat16", ("batch", 4)),
        TensorSpec("text", "string", ("batch",)),
        preprocess={"image": ImagePreprocess(height=20, width=30)},
        states={"h0": "scores"},
        defaults={"rate": 16000},
    )
    inputs = bench_inputs(package)
    assert (inputs.real, inputs.source) == (False, "random tensors")
    feed = check_feed(inputs.feeds(2)[0], package.manifest.input_specs)
    assert feed["image"].shape == (2, 3, 20, 30)
    assert set(np.unique(feed["ids"])) <= {0, 1}
    assert not feed["h0"].any()
    assert feed["rate"] == 16000
    again = bench_inputs(package).feeds(2)[0]
    np.testing.assert_array_equal(feed["image"], again["image"])


def test_sizes_are_given_by_name_and_wrong_names_are_refused(tmp_path: Path) -> None:
    package = package_of(tmp_path / "z.edge", TensorSpec("x", "float32", ("batch", "length")))
    assert bench_inputs(package, {"length": 9}).feeds(1)[0]["x"].shape == (1, 9)
    with pytest.raises(UsageError, match="free dimensions are batch, length"):
        bench_inputs(package, {"width": 9})


def test_synthetic_samples_of_a_package_are_not_called_real(tmp_path: Path) -> None:
    x = np.zeros((4, 4), np.float32)
    with create(tmp_path / "y.edge") as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model().SerializeToString())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        writer.write_samples({"x": x}, {"scores": x[:, :3]})
        package = writer.commit(tiny_manifest(samples=SampleSet(count=4, source="synthetic")))
    inputs = bench_inputs(package)
    assert (inputs.real, inputs.source) == (False, "4 random samples of the package")
