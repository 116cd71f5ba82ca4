from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ModelError, RecipeError, UsageError
from edgekit.export.source import built, read_source
from edgekit.recipe import ModelSpec
from edgekit.tensors import TensorSpec
from tests.export.common import RECIPES, recipe

X = TensorSpec("x", "float32", ("batch", 4))


def test_recipes_and_names_in_them(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        tail="module = Net()\ndef spec():\n    return SPEC\n"
        "OTHER = ModelSpec(name='other', build=build, inputs=SPEC.inputs)\n",
    )
    for source, name in ((str(path), "net"), (f"{path}:OTHER", "other"), (f"{path}:spec", "net")):
        found = read_source(source)
        assert (found.kind, found.name, found.file.name) == ("torch", name, "net.py")
    for source in (f"{path}:module", f"{path}:build", f"{path}:Net"):
        found = read_source(source, [X])
        assert found.spec is not None
        assert found.spec.inputs == (X,)
        assert type(built(found.spec)).__name__ == "Net"
        assert not built(found.spec).training


def test_an_installed_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)
    found = read_source("residual:training_net", [TensorSpec("image", "float32", ("batch", 3, 16, 16))])
    assert (found.name, found.file.name) == ("training_net", "residual.py")


def test_files_by_their_suffix(tmp_path: Path) -> None:
    for name in ("my model.onnx", "my model.pt2"):
        (tmp_path / name).write_bytes(b"x")
        found = read_source(tmp_path / name)
        assert (found.kind, found.name, found.spec) == (name.rpartition(".")[2], "my_model", None)


@pytest.mark.parametrize(
    ("tail", "name", "says"),
    [
        ("", "nothing", "has no 'nothing'"),
        ("number = 3", "number", "is a int; expected a ModelSpec"),
        ("module = Net()", "module", "bare module, which does not say what it takes.*--input"),
        ("def make():\n    return 3", "make", "returned int; expected"),
        ("def make():\n    raise KeyError('lost')", "make", "failed with KeyError: 'lost'"),
    ],
)
def test_what_is_no_model_is_explained(tmp_path: Path, tail: str, name: str, says: str) -> None:
    path = recipe(tmp_path, tail=tail)
    with pytest.raises((RecipeError, UsageError), match=says):
        read_source(f"{path}:{name}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "has no 'SPEC'. A recipe defines SPEC"),
        ("SPEC = 3", "is a int; expected a ModelSpec"),
        ("1 / 0", r"failed with ZeroDivisionError: division by zero \(line 1 of bad\.py\)"),
        ("def f(:", "SyntaxError"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("import sys\nsys.exit(3)", "tried to exit the program"),
    ],
)
def test_broken_recipes_name_the_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(RecipeError, match=says):
        read_source(tmp_path / "bad.py")


def test_inputs_are_for_bare_modules_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="describes its own inputs"):
        read_source(recipe(tmp_path), [X])
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match="describes its own inputs"):
        read_source(tmp_path / "m.onnx", [X])


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds weights, not a model"):
        read_source(tmp_path / "net.pth")
    with pytest.raises(ModelError, match="does not exist"):
        read_source(tmp_path / "none.onnx")
    with pytest.raises(RecipeError, match="not a model source"):
        read_source("nonsense")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: 3, "returned int; expected a torch.nn.Module"),
        (lambda: "weights.bin", "which is not an .onnx or .pt2 file"),
        (lambda: 1 / 0, "build of recipe 'net' failed with ZeroDivisionError"),
    ],
)
def test_build_must_give_a_module(build, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        built(ModelSpec(name="net", build=build, inputs=(X,)))
