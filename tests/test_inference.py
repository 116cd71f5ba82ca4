"""Real models on real files, from the command that exports them to what a user reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.inference import detections, scores
from tests.data import ROOT, data_path

Run = Callable[..., subprocess.CompletedProcess[str]]


def exported(recipe: str, folder: Path) -> Path:
    """The package of a recipe in tests/recipes, which import from `tests`."""
    path = folder / f"{recipe}.edge"
    command = [sys.executable, "-m", "edgekit", "export", f"tests/recipes/{recipe}.py", "-o", str(path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_path("clf_squeezenet11/squeezenet11_fp32.onnx")
    return exported("squeezenet", tmp_path_factory.mktemp("squeezenet"))


@pytest.fixture(scope="module")
def silero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_path("audio_silero_vad/silero_vad_16k_op15.onnx")
    return exported("silero", tmp_path_factory.mktemp("silero"))


def test_photographs_get_their_labels(squeezenet: Path, edgekit: Run) -> None:
    pictures = [data_path(f"img_samples/{name}") for name in ("grace_hopper.bmp", "cat.bmp", "parrot.jpg")]
    done = edgekit("run", squeezenet, *pictures, "--json", "--top", "5")
    assert done.returncode == 0, done.stderr
    tops = [{c["label"] for c in r["classes"][0]} for r in json.loads(done.stdout)]
    assert "military uniform" in tops[0]
    assert tops[1] & {"tabby, tabby cat", "tiger cat", "Egyptian cat"}
    assert "macaw" in tops[2]


def test_a_recording_goes_frame_by_frame_with_its_state(silero: Path, edgekit: Run, tmp_path: Path) -> None:
    speech = data_path("audio_silero_vad/test.wav")
    done = edgekit("run", silero, speech, "-o", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as out:
        assert out["output"].shape == (1875, 1)
        assert abs((out["output"] > 0.5).mean() - 0.774) < 0.002, "share of speech in the minute, as measured elsewhere"


def test_rows_of_a_sequence_are_counted_without_its_state(edgekit: Run, tmp_path: Path) -> None:
    """A running sum whose state is its first input, as in a sampling loop, and begins where the file says."""
    (tmp_path / "total.py").write_text(
        "import numpy as np, torch\n"
        "from edgekit import ModelSpec, TensorSpec\n"
        "class Total(torch.nn.Module):\n"
        "    def forward(self, state, x):\n"
        "        return state + x, 2 * (state + x)\n"
        "SPEC = ModelSpec(name='total', build=Total, outputs=('next', 'twice'), states={'state': 'next'},\n"
        "    inputs=tuple(TensorSpec(name, 'float32', ('batch', 1)) for name in ('state', 'x')),\n"
        "    samples=lambda n, seed: {'x': np.ones((n, 1), np.float32)})\n"
    )
    done = edgekit("export", "total.py", "-o", "total.edge", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    x = np.array([[1], [2], [3]], np.float32)
    for start in ({}, {"state": np.full((1, 1), 10, np.float32)}):
        np.savez(tmp_path / "in.npz", x=x, **start)
        done = edgekit("run", "total.edge", "in.npz", "-o", "out.npz", "--force", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "out.npz") as out:
            begin = 10 if start else 0
            assert out["twice"].ravel().tolist() == [2 * (begin + total) for total in (1, 3, 6)]
            assert out["next"].ravel().tolist() == [begin + 6]


def test_a_fixed_batch_takes_several_files_one_by_one(squeezenet: Path, edgekit: Run, tmp_path: Path) -> None:
    pictures = [data_path("img_samples/cat.bmp"), data_path("img_samples/parrot.jpg")]
    done = edgekit("run", squeezenet, *pictures, "-o", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as out:
        assert out["softmaxout_1"].shape == (2, 1000, 1, 1)


def test_scores_are_probabilities_either_way() -> None:
    logits = {"y": np.array([[1.0, 3.0, 2.0]])}
    best = scores(logits, ("a", "b", "c"), row=0, top=2)
    assert [s.label for s in best] == ["b", "c"]
    assert best[0].probability == pytest.approx(np.exp(3) / np.exp([1, 3, 2]).sum())
    distribution = {"y": np.array([[0.2, 0.7, 0.1]])}
    assert scores(distribution, (), row=0, top=1)[0].probability == pytest.approx(0.7)
    assert scores(distribution, (), row=0, top=1)[0].label == "1"


def test_what_was_found_has_its_label_and_only_what_counts_is_told() -> None:
    outputs = {
        "count": np.array([2, 0], np.int32),
        "boxes": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "scores": np.array([[0.3, 0.9, 0.8], [0, 0, 0]], np.float32),
        "classes": np.array([[1, 5, 1], [-1, -1, -1]], np.int32),
    }
    found = detections(outputs, ("cat", "dog"), row=0)
    assert [(d.label, round(d.score, 3), d.box) for d in found] == [
        ("5", 0.9, (4, 5, 6, 7)),
        ("dog", 0.3, (0, 1, 2, 3)),
    ]
    assert [d.label for d in detections(outputs, ("cat", "dog"), row=0, least=0.5)] == ["5"]
    assert detections(outputs, (), row=1) == []
