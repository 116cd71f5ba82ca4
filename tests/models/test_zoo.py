"""Every recipe of the zoo: it loads, says what the table needs, and has a row there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit import ModelSpec
from edgekit.recipe import load_recipe
from models._zoo import GROUPS, LIMIT_BYTES
from scripts.zoo_table import readme
from tests.data import ROOT

RECIPES = sorted((ROOT / "models").glob("[!_]*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_complete(recipe: Path) -> None:
    zoo = load_recipe(f"{recipe}:ZOO")
    assert zoo.group in GROUPS
    assert zoo.specs[0] == "SPEC"
    for name in zoo.specs:
        spec = load_recipe(f"{recipe}:{name}")
        assert isinstance(spec, ModelSpec)
        assert spec.samples is not None
        assert spec.evaluate is not None
        assert spec.outputs, "a name for each output"
        assert spec.description
        assert spec.license
        assert "int8" in spec.tolerance
        once, again = spec.sample(2, seed=0), spec.sample(2, seed=0)
        for key, array in once.items():
            np.testing.assert_array_equal(array, again[key], err_msg="the same seed gives the same samples")
    assert load_recipe(f"{recipe}:SPEC").name == recipe.stem
    for name in zoo.stages.values():
        assert isinstance(load_recipe(f"{recipe}:{name}"), ModelSpec)


def test_committed_weights_are_small() -> None:
    files = list((ROOT / "models").glob("*.safetensors"))
    assert files
    assert {f.name: f.stat().st_size for f in files if f.stat().st_size > LIMIT_BYTES} == {}


def test_the_table_is_made_of_the_recorded_results() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text())["rows"]
    assert (ROOT / "models" / "README.md").read_text() == readme(rows), "run: python scripts/zoo.py --table"


def test_the_table_has_a_row_for_every_recipe() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text())["rows"]
    wanted = {f"models/{f.name}" for f in RECIPES}
    assert {row["recipe"].partition(":")[0] for row in rows.values()} == wanted, "run: make zoo"
