"""What a recipe declares for files is what its net was trained on: its samples are pictures of 8 bits, so declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit import ImagePreprocess
from edgekit.export.frames import with_preprocess
from edgekit.recipe import load_recipe
from tests.data import ROOT

RECIPES = sorted((ROOT / "models").glob("[!_]*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_samples_are_what_preprocessing_makes_of_pictures(recipe: Path) -> None:
    spec = load_recipe(f"{recipe}:SPEC")
    images = {k: v for k, v in spec.preprocess.items() if isinstance(v, ImagePreprocess)}
    if not images:
        pytest.skip(f"{recipe.stem} declares no image")
    ((name, how),) = images.items()
    rows = spec.sample(2, seed=1)[name]
    # The way back to 8 bits and the declared way again: off the grid, or out of 0 to 255, a sample would not return.
    frames = with_preprocess(spec, height=how.height, width=how.width).sample(2, seed=1)[name]
    again = [how.from_pixels((f[:, :, ::-1] if how.color == "BGR" else f).astype(np.float32)) for f in frames]
    np.testing.assert_allclose(np.concatenate(again), rows, atol=1e-4)
