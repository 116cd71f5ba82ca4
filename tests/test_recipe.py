from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit import ModelSpec, TensorSpec
from edgekit.errors import ModelError, RecipeError
from edgekit.recipe import load_recipe, spec_from_recipe

GOOD = """
import numpy as np
from edgekit import ModelSpec, TensorSpec
def samples(n, seed):
    return {"x": np.zeros((n, 4), np.float32)}
SPEC = ModelSpec(name="net", build=lambda: None, inputs=(TensorSpec("x", "float32", ("batch", 4)),), samples=samples)
OTHER = ModelSpec(name="other", build=lambda: None, inputs=(TensorSpec("x", "float32", ("batch", 4)),))
"""


def recipe(folder: Path, text: str) -> Path:
    path = folder / "net.py"
    path.write_text(text)
    return path


def test_a_recipe_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, GOOD)
    assert spec_from_recipe(path).name == "net"
    assert spec_from_recipe(f"{path}:OTHER").name == "other"
    assert spec_from_recipe(path).sample(3, 0)["x"].shape == (3, 4)


def test_a_recipe_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "_beside_recipe.py").write_text("NAME = 'from-beside'\n")
    path = recipe(tmp_path, "from _beside_recipe import NAME\n" + GOOD.replace('"net"', "NAME"))
    assert spec_from_recipe(path).name == "from-beside"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "has no 'SPEC'"),
        ("SPEC = 3", "is a int; expected a ModelSpec"),
        ("raise ValueError('no data here')", r"ValueError: no data here \(line 1 of net.py\)"),
        ("def f(:", "SyntaxError"),
        ("import a_module_nobody_has", "ModuleNotFoundError"),
    ],
)
def test_a_recipe_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        spec_from_recipe(recipe(tmp_path, text))


def test_sources_that_are_not_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "none.py")
    with pytest.raises(RecipeError, match="not a model source"):
        load_recipe("resnet50")
    with pytest.raises(RecipeError, match="'no_such_package.net' is not found"):
        load_recipe("no_such_package.net:make")
    with pytest.raises(RecipeError, match="has no 'nothing'"):
        load_recipe("json:nothing")
    assert load_recipe("json:dumps")({}) == "{}"


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "x" * 129, "ü", "a\n"])
def test_names_that_could_leave_a_folder_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="not usable"):
        ModelSpec(name=name, build=lambda: None, inputs=(TensorSpec("x", "float32", (1,)),))


def test_declarations_about_unknown_inputs_are_refused() -> None:
    with pytest.raises(RecipeError, match="names 'y', which is not an input"):
        ModelSpec(name="a", build=lambda: None, inputs=(TensorSpec("x", "float32", (1,)),), defaults={"y": np.zeros(1)})
    with pytest.raises(RecipeError, match="one or more TensorSpec"):
        ModelSpec(name="a", build=lambda: None, inputs=())


def spec_with(samples: object) -> ModelSpec:
    inputs = (TensorSpec("x", "float32", ("batch", 4)),)
    return ModelSpec(name="a", build=lambda: None, inputs=inputs, samples=samples)  # type: ignore[arg-type]


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="has no samples"):
        spec_with(None).sample(1, 0)
    with pytest.raises(RecipeError, match="returned list"):
        spec_with(lambda n, seed: [1]).sample(1, 0)
    with pytest.raises(RecipeError, match="ZeroDivisionError"):
        spec_with(lambda n, seed: 1 / 0).sample(1, 0)
    with pytest.raises(RecipeError, match=r"samples of recipe 'a' do not fit .* accepts \(batch,4\)"):
        spec_with(lambda n, seed: {"x": np.zeros((n, 5), np.float32)}).sample(1, 0)


def test_tensor_specs_refuse_nonsense() -> None:
    for dtype, shape in (("complex64", (1,)), ("float32", (-1,)), ("float32", ("",)), ("float32", (True,))):
        with pytest.raises(ModelError):
            TensorSpec("x", dtype, shape)
