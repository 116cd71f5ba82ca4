"""Several models as one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.errors import InputError, UsageError
from edgekit.preprocess import ImagePreprocess
from edgekit.runtime.fake import FakeSession
from edgekit.serve.crops import Crop, best_boxes, crop
from edgekit.serve.model import Model
from edgekit.serve.pipeline import PipelineSession, read_pipeline
from edgekit.tensors import Tensors, TensorSpec
from tests.data import data_path
from tests.serve.packages import write_package
from tests.serve.test_library import Serving, versioned


def fake(name: str, factor: float, spec: TensorSpec | None = None) -> tuple[Model, list[Tensors]]:
    """y = factor * x, and the feeds that it was given."""
    seen: list[Tensors] = []
    x = spec or TensorSpec("x", "float32", ("n", 3))

    def run(feed: Tensors) -> Tensors:
        seen.append(feed)
        return {"y": feed["x"] * factor}

    return Model(FakeSession([x], [TensorSpec("y", x.dtype, x.shape)], run), name=name), seen


def declared(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "both.pipeline.toml"
    path.write_text(text)
    return path


def test_tensors_are_passed_on_as_they_are(tmp_path: Path) -> None:
    text = """
outputs = ["b", "a"]
[[stages]]
model = "one"
outputs = { a = "y" }
[[stages]]
model = "two"
inputs = { x = "a" }
outputs = { b = "y" }
"""
    (one, _), (two, seen) = fake("one", 2), fake("two", 10)
    session = PipelineSession("both", read_pipeline(declared(tmp_path, text)), {"one": one, "two": two})
    assert [s.name for s in session.inputs] == ["x"]
    assert [(s.name, s.shape) for s in session.outputs] == [("b", ("n", 3)), ("a", ("n", 3))]
    got = session.run({"x": np.ones((2, 3), np.float32)})
    assert (got["a"].max(), got["b"].max()) == (2, 20)
    assert seen[0]["x"] is got["a"]
    with pytest.raises(InputError, match="Input 'x': got"):
        session.run({"x": np.ones((2, 4), np.float32)})
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('outputs = ["a"]', "missing required field `stages`"),
        ('outputs = []\n[[stages]]\nmodel = "one"', "length >= 1"),
        ('outputs = ["y"]\n[[stages]]\ninputs = {x = "x"}', "a stage has either a model or a crop"),
        ('outputs = ["y"]\n[[stages]]\nmodel = "three"', "runs model 'three', which is not here; there is one, two"),
        ('outputs = ["z"]\n[[stages]]\nmodel = "one"', "makes its output 'z'; they make y"),
        ('outputs = ["y"]\n[[stages]]\nmodel = "one"\ninputs = {z = "x"}', "'one' has no input 'z'; it has x"),
        ('outputs = ["a"]\n[[stages]]\nmodel = "one"\noutputs = {a = "z"}', "'one' has no output 'z'; it has y"),
        ('outputs = ["x"]\n[[stages]]\nmodel = "one"\noutputs = {x = "y"}', "makes tensor 'x', which is there already"),
        (
            'outputs = ["a"]\n[[stages]]\nmodel = "one"\noutputs = {a = "y"}\n'
            '[[stages]]\ncrop = {image = "x", boxes = "b", into = "c", height = 2, width = 2}',
            "Stage 2 of pipeline 'both' takes tensor 'b'",
        ),
        (
            'outputs = ["c"]\n[[stages]]\nmodel = "one"\n'
            '[[stages]]\ncrop = {image = "x", boxes = "y", into = "c", height = 2, width = 2}',
            "crops 'x', which is x: float32",
        ),
    ],
)
def test_a_mistake_in_a_pipeline_is_named(tmp_path: Path, text: str, words: str) -> None:
    models = {"one": fake("one", 1)[0], "two": fake("two", 1)[0]}
    with pytest.raises(UsageError, match=words):
        PipelineSession("both", read_pipeline(declared(tmp_path, text)), models)


def test_a_pipeline_in_a_folder_of_packages_follows_them(tmp_path: Path) -> None:
    versioned(tmp_path / "net.edge", "net", "1", 2.0)
    (tmp_path / "both.pipeline.toml").write_text(
        'outputs = ["first"]\n[[stages]]\nmodel = "net"\noutputs = {first = "scores"}\n'
    )
    serving = Serving(tmp_path)
    assert serving.index() == [("net", "1", "READY"), ("both", "1", "READY")]
    assert serving.score("both") == 2
    assert serving.app.model_metadata("both")["platform"] == "edgekit_pipeline"
    old = serving.app.repository.find("net")
    versioned(tmp_path / "net.edge", "net", "1", 3.0)
    serving.poll()
    assert (serving.score("net"), serving.score("both")) == (3, 3)
    assert serving.app.repository.find("net") is not old
    (tmp_path / "both.pipeline.toml").write_text('outputs = ["first"]\n[[stages]]\nmodel = "nothing"\n')
    serving.poll()
    assert serving.score("both") == 3
    assert "runs model 'nothing'" in serving.app.repository_index()[1]["reason"]
    assert serving.unload("net", dependents=True) is None
    assert {state for _, _, state in serving.index()} == {"UNAVAILABLE"}
    serving.close()


def test_a_model_that_is_unloaded_stays_for_the_pipeline_that_runs_it(tmp_path: Path) -> None:
    versioned(tmp_path / "net.edge", "net", "1", 2.0)
    (tmp_path / "both.pipeline.toml").write_text(
        'outputs = ["first"]\n[[stages]]\nmodel = "net"\noutputs = {first = "scores"}\n'
    )
    serving = Serving(tmp_path)
    assert serving.unload("net") is None
    for thread in serving.app._retiring:
        thread.join()
    assert serving.score("both") == 2
    serving.close()


def test_boxes_are_cut_out_and_brought_to_one_size() -> None:
    text = {"image": "image", "boxes": "boxes", "into": "parts", "height": 2, "width": 2}
    how = read_crop(**text)
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]], np.float32)
    parts = crop(how, {"image": image, "boxes": boxes})["parts"]
    assert parts[:, 0].tolist() == [[[0, 1], [4, 5]], [[10, 11], [14, 15]], [[5, 7], [13, 15]]]
    pixels = read_crop(**text, pixels=True)
    same = crop(pixels, {"image": image, "boxes": boxes[None] * 4})["parts"]
    np.testing.assert_array_equal(same, parts)
    beyond = crop(how, {"image": image, "boxes": np.array([[-5, -5, 9, 9]], np.float32)})["parts"]
    assert beyond.shape == (1, 1, 2, 2)
    for wrong in ({"image": image[0], "boxes": boxes}, {"image": image, "boxes": boxes[:, :3]}):
        with pytest.raises(InputError, match="of shape"):
            crop(how, wrong)


def test_the_best_boxes_that_do_not_overlap_are_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 10.0]])
    scores = np.array([0.8, 0.9, 0.6, 0.2])
    assert best_boxes(boxes, scores, threshold=0.5, overlap=0.5).tolist() == [1, 2]
    assert best_boxes(boxes, scores, threshold=0.5, overlap=0.99).tolist() == [1, 0, 2]
    assert best_boxes(boxes, scores, threshold=0.95, overlap=0.5).tolist() == []
    assert best_boxes(np.zeros((2, 4)), np.ones(2), threshold=0.5, overlap=0.5).tolist() == [0, 1]


def read_crop(**values: object) -> Crop:
    return msgspec.convert(values, Crop)


def test_a_real_detector_finds_the_face_that_the_next_stage_gets(tmp_path: Path) -> None:
    how = ImagePreprocess(height=240, width=320, scale=1.0, mean=(127.0,), std=(128.0,))
    spec = TensorSpec("input", "float32", (1, 3, 240, 320))
    outputs = TensorSpec("scores", "float32", (1, 4420, 2)), TensorSpec("boxes", "float32", (1, 4420, 4))
    write_package(
        tmp_path / "faces.edge",
        data_path("det_ultraface/version-slim-320.onnx").read_bytes(),
        inputs=(spec,),
        outputs=outputs,
        preprocess={"input": how},
    )
    (tmp_path / "portrait.pipeline.toml").write_text(
        'outputs = ["faces", "number"]\n[[stages]]\nmodel = "faces"\n[[stages]]\n'
        'crop = { image = "input", boxes = "boxes", scores = "scores", threshold = 0.7, into = "faces", '
        'kept = "number", height = 48, width = 32 }\n'
    )
    serving = Serving(tmp_path)
    model = serving.app.repository.find("portrait")
    assert list(model.preprocess) == ["input"]
    photo = data_path("img_samples/grace_hopper.bmp").read_bytes()
    image = how.from_bytes(photo, name="grace_hopper.bmp")
    got = model.session.run({"input": image})
    assert got["faces"].shape == (1, 3, 48, 32)
    detector = serving.app.repository.find("faces").session.run({"input": image})
    (number,) = got["number"]
    assert number == detector["scores"][0, :, 1].argmax()
    left, top, right, bottom = detector["boxes"][0, number]
    centre = image[0, :, int(240 * (top + bottom) / 2), int(320 * (left + right) / 2)]
    assert np.abs(got["faces"][0, :, 24, 16] - centre).max() < 0.2
    nobody = model.session.run({"input": np.zeros_like(image)})
    assert nobody["faces"].shape == (0, 3, 48, 32)
    serving.close()
