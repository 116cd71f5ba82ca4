from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from edgekit.recipe import spec_from_recipe
from tests.conftest import RECIPE


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    import sys

    spec = spec_from_recipe(RECIPE)
    return sys.modules[spec.build.__module__]


def runner(net: torch.nn.Module):
    def run(feed):
        with torch.inference_mode():
            return {"logits": net(torch.from_numpy(feed["image"])).numpy()}

    return run


def test_the_weights_read_98_percent_of_images_never_trained_on(recipe: ModuleType) -> None:
    assert recipe.evaluate(runner(recipe.build()), 600)["top1"] >= 0.98
    assert RECIPE.with_suffix(".safetensors").stat().st_size < 500_000


def test_the_splits_share_no_image(recipe: ModuleType) -> None:
    train, _, test, labels = recipe.digits(recipe.PREPROCESS)
    assert len(test) == 600
    assert len(train) + len(test) == 1797
    assert set(labels) == set(range(10))
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


def test_samples_are_real_seeded_training_images(recipe: ModuleType) -> None:
    once, again, other = (recipe.samples(20, seed)["image"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    train = {image.tobytes() for image in recipe.digits(recipe.PREPROCESS)[0]}
    assert all(image.tobytes() in train for image in once)


def test_training_is_seeded_and_learns(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = recipe.train(epochs=1), recipe.train(epochs=1)
    for a, b in zip(first.state_dict().values(), again.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    losses = [float(line.rpartition("loss ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert max(losses) < 2.1, "the mean loss of one epoch is below that of guessing, ln 10 = 2.3"
