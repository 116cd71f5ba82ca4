from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.bench.correct import correctness_of, with_correct
from edgekit.bench.report import Correctness, Joules
from edgekit.manifest import Accuracy
from edgekit.package import Package
from edgekit.recipe import ModelSpec, Runner
from edgekit.runtime.select import open_session
from tests.tiny import INPUT

JOULES = Joules(
    joules_per_inference=2.0, uncertainty_j=0.1, power_w=10, source="rail", scope="module", inferences=99, duration_s=9
)


def recipe(evaluate: object) -> ModelSpec:
    return ModelSpec(name="tiny", build=lambda: None, inputs=(INPUT,), evaluate=evaluate)  # type: ignore[arg-type]


def test_a_right_answer_costs_the_energy_over_the_share_of_right_ones() -> None:
    right = Correctness(metric="top1", share=0.8, samples=1000, origin="measured now")
    out = with_correct(JOULES, right, predictions=4)
    assert out.joules_per_correct == pytest.approx(2.0 / 4 / 0.8)
    assert out.correct_uncertainty_j is not None
    assert out.correct_uncertainty_j / out.joules_per_correct == pytest.approx(np.hypot(0.05, 0.031), rel=0.02)


def test_no_error_in_few_samples_is_not_taken_for_certainty() -> None:
    few = Correctness(metric="top1", share=1.0, samples=20, origin="measured now")
    out = with_correct(msgspec.structs.replace(JOULES, uncertainty_j=0.0), few, predictions=1)
    assert out.correct_uncertainty_j is not None
    assert out.correct_uncertainty_j > 0.05 * JOULES.joules_per_inference


def test_the_share_is_measured_with_the_recipe_on_the_samples_that_it_used(tiny: Package) -> None:
    def evaluate(run: Runner, n: int) -> dict[str, float]:
        assert n == 500
        run({"x": np.zeros((7, 4), np.float32)})
        run({"x": np.zeros((5, 4), np.float32)})
        return {"loss": 3.0, "top1": 0.75}

    with open_session(tiny, variant="fp32") as session:
        right = correctness_of(tiny, tiny.variant("fp32"), session, recipe(evaluate), 500)
    assert right == Correctness(metric="top1", share=0.75, samples=12, origin="measured now")


@pytest.mark.parametrize(
    ("task", "metrics", "words"),
    [
        ("detection", {"map": 0.4}, "the task is 'detection'"),
        ("", {"top1": 0.4}, "the task is not stated"),
        ("classification", {}, "was not measured; pass --recipe tiny.py"),
        ("classification", {"loss": 0.4}, "the recipe has: loss"),
        ("classification", {"top1": 0.0}, "top1 is 0; expected a share"),
    ],
)
def test_what_has_no_right_answers_says_so(tiny: Package, task: str, metrics: dict[str, float], words: str) -> None:
    accuracy = Accuracy(samples=8, max_abs=0, cosine=1, metrics=metrics, metric_samples=50 if metrics else None)
    variant = msgspec.structs.replace(tiny.variant("fp32"), accuracy=accuracy)
    tiny.manifest = msgspec.structs.replace(tiny.manifest, task=task)
    with open_session(tiny, variant="fp32") as session:
        answer = correctness_of(tiny, variant, session, None, 500)
    assert isinstance(answer, str)
    assert words in answer
