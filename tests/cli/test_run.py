from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from sklearn.datasets import load_digits

from edgekit.package import Package
from tests.quantize.nets import model_of
from tests.quantize.packages import package_of
from tests.tiny import WEIGHT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """Ten real digits, one of each, as PNG files."""
    data = load_digits()
    folder = tmp_path_factory.mktemp("pictures")
    out = []
    for digit in range(10):
        index = int(np.flatnonzero(data.target == digit)[20])
        path = folder / f"{digit}.png"
        Image.fromarray(np.rint(data.images[index] * (255 / 16)).astype(np.uint8)).save(path)
        out.append((path, digit))
    return out


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_pictures_of_digits_are_read(
    digits: Package, pictures: list[tuple[Path, int]], edgekit: Run, variant: str
) -> None:
    done = edgekit("run", digits.path, *(p for p, _ in pictures), "--variant", variant, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    best = [r["classes"][0][0]["label"] for r in results]
    assert best == [str(d) for _, d in pictures]
    assert all(0 <= r["classes"][0][0]["probability"] <= 1 for r in results)


def test_labels_and_probabilities_are_printed(digits: Package, pictures: list[tuple[Path, int]], edgekit: Run) -> None:
    done = edgekit("run", digits.path, pictures[7][0], "--top", "2")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1].split()
    assert line[0].endswith("7.png")
    assert line[1] == "7"
    assert re.search(r"variant (fp32|int8) \(best of \d variants", done.stderr)


def test_arrays_in_arrays_out(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((70, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "more.npy", x[:2])
    done = edgekit("run", tiny.path, tmp_path / "in.npz", tmp_path / "more.npy", "-o", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["scores"], np.concatenate([x, x[:2]]) @ WEIGHT, rtol=1e-5)
        assert [Path(s).name for s in out["source"][[0, 69, 70]]] == ["in.npz", "in.npz", "more.npy"]


def test_an_existing_output_needs_force(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    (tmp_path / "out.npz").write_text("precious")
    done = edgekit("run", tiny.path, tmp_path / "x.npy", "-o", tmp_path / "out.npz")
    assert done.returncode == 2
    assert (tmp_path / "out.npz").read_text() == "precious"
    assert edgekit("run", tiny.path, tmp_path / "x.npy", "-o", tmp_path / "out.npz", "--force").returncode == 0
    with np.load(tmp_path / "out.npz") as out:
        assert out["scores"].shape == (1, 3)


def test_inputs_that_do_not_fit_are_one_sentence(tiny: Package, digits: Package, edgekit: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((1, 5), np.float32))
    np.save(tmp_path / "double.npy", np.ones((1, 4)))
    np.savez(tmp_path / "other.npz", y=np.ones((1, 4), np.float32), z=np.ones(1))
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "notes.txt").write_text("x")
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    cases = {
        "wide.npy": "got (1,5), this model accepts (batch,4)",
        "double.npy": "got float64",
        "other.npz": "does not give input x",
        "objects.npy": "is not a readable numpy file",
        "broken.npz": "is not a readable numpy file",
        "notes.txt": "not an input file",
        "none.npy": "does not exist",
        "x.png": "declared for no input",
    }
    for name, words in cases.items():
        done = edgekit("run", tiny.path, tmp_path / name)
        assert done.returncode == 2, name
        assert words in done.stderr, name
        assert len(done.stderr.splitlines()) <= 2
    (tmp_path / "broken.png").write_bytes(b"no picture")
    done = edgekit("run", digits.path, tmp_path / "broken.png")
    assert done.returncode == 2
    assert "'broken.png' cannot be decoded" in done.stderr


def test_models_that_do_not_classify_print_a_summary(tiny: Package, edgekit: Run, tmp_path: Path) -> None:
    from tests.tiny import tiny_manifest

    with tiny.edit() as writer:
        plain = writer.commit(tiny_manifest(task=""))
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    done = edgekit("run", plain.path, tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    assert "(2,3)" in done.stdout
    assert "scores" in done.stdout


def test_the_device_is_kept_to_and_one_that_is_not_there_is_an_answer(
    tiny: Package, edgekit: Run, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    done = edgekit("run", tiny.path, tmp_path / "x.npy", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "CPU" in done.stderr
    cases = {
        "cuda:99": "Device cuda:99 does not exist; ",
        "gpu": "Device 'gpu' is not known; expected cpu, cuda or cuda:N",
        "cpu,cpu": "Name one device, or spread the stages of a package over them with --split",
    }
    for device, words in cases.items():
        done = edgekit("run", tiny.path, tmp_path / "x.npy", "--device", device)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    for command in ("verify", "bench"):
        done = edgekit(command, tiny.path, "--device", "cpu,cpu")
        assert (done.returncode, f"{command} uses one device at a time" in done.stderr) == (2, True)
    done = edgekit("verify", tiny.path, "--device", "cpu")
    assert done.returncode == 0, done.stderr


def test_stages_run_as_one_model_and_may_be_spread(edgekit: Run, tmp_path: Path) -> None:
    from tests.stages import pair, two_layers

    package = pair(tmp_path)
    x = np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for extra in ((), ("--split", "--device", "cpu,cpu")):
        done = edgekit("run", package.path, tmp_path / "x.npz", "-o", tmp_path / "out.npz", "--force", *extra)
        assert done.returncode == 0, done.stderr
        assert "pair: encoder: variant fp32 (the only variant); decoder: variant fp32" in done.stderr
        with np.load(tmp_path / "out.npz") as out:
            np.testing.assert_allclose(out["y"], two_layers(x), rtol=1e-4, atol=1e-5)
    done = edgekit("run", package.path, tmp_path / "x.npz", "--split", "--device", "cpu")
    assert (done.returncode, "takes 2 devices" in done.stderr) == (2, True)


def test_a_detector_prints_what_it_found(edgekit: Run, tmp_path: Path) -> None:
    """A model of rows (left, top, right, bottom, score, class), of which those with a score count."""
    node, weights = helper.make_node, {"zero": np.float32(0)}
    nodes = [
        node("Split", ["x"], ["boxes", "score", "class"], axis=2, split=[4, 1, 1]),
        node("Squeeze", ["score"], ["scores"], axes=[2]),
        node("Squeeze", ["class"], ["labels"], axes=[2]),
        node("Cast", ["labels"], ["classes"], to=onnx.TensorProto.INT32),
        node("Greater", ["scores", "zero"], ["there"]),
        node("Cast", ["there"], ["ones"], to=onnx.TensorProto.FLOAT),
        node("ReduceSum", ["ones"], ["sum"], axes=[1], keepdims=0),
        node("Cast", ["sum"], ["count"], to=onnx.TensorProto.INT32),
    ]
    model = model_of(nodes, weights, {"x": ("batch", 3, 6)}, ["boxes", "scores"], opset=11)
    for name, shape in (("count", ["batch"]), ("classes", ["batch", 3])):
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT32, shape))
    package = package_of(tmp_path / "finder.edge", model, {"x": np.zeros((2, 3, 6), np.float32)})
    rows = np.array([[1, 2, 3.25, 4, 0.2, 7], [5, 6, 7, 8, 0.75, 3], [0, 0, 0, 0, 0, -1]], np.float32)
    np.save(tmp_path / "one.npy", rows[None])
    np.save(tmp_path / "none.npy", np.zeros((1, 3, 6), np.float32))
    done = edgekit("run", package.path, tmp_path / "one.npy", tmp_path / "none.npy")
    assert done.returncode == 0, done.stderr
    one, none = (line.split()[1:] for line in done.stdout.splitlines()[-2:])
    assert one == ["3", "0.7500", "5.0", "6.0", "7.0", "8.0"]
    assert none == ["nothing"]
    done = edgekit("run", package.path, tmp_path / "one.npy", "--min-score", "0", "--json")
    (found,) = json.loads(done.stdout)[0]["detections"]
    assert [d["label"] for d in found] == ["3", "7"]
    assert found[1]["box"] == [1, 2, 3.25, 4]
