"""The model zoo: what a recipe in this folder tells beside its SPEC, and where its weights lie.

Every file here without a leading underscore is a recipe, and a row of README.md. To add one:

1. `models/NAME.py`, about one screen: the net as a class (`width`, `depth` arguments where it has sizes), `build`,
   `samples` (from the training split), `evaluate` (on the test split, the first metric is the task's), `SPEC`, and

       ZOO = Zoo(group="classic CNNs", title="LeNet-5", data="scikit-learn's digits")

   `SPEC.name` is the file's name; `SPEC.tolerance` gives the points that "fp16" and "int8" may lose (a point is a
   hundredth of the metric).
2. A trained net has `train() -> nn.Module`, made of the pieces in `_train.py`, at most two minutes on two cores, and
   ends with

       if __name__ == "__main__":
           finish(train(), SPEC, __file__)

   which writes the weights (`build` loads `weights_file(__file__)`) and prints the metric. Files up to 500 KB lie
   beside the recipe and are committed; larger ones go to `models/cache/`, which git ignores, and `make zoo` trains them
   again where they are missing. A recipe of several nets saves each: `save(net, __file__, part="decoder")`.
   `weights="random"` is for full-size nets that show shape, speed and compilation only.
3. `scripts/zoo.py NAME` takes it the whole way and writes its row. `make zoo` does so for all of them.

Data come from `_data.py` and `_scenes.py`. A public data set may be absent: the recipe then falls back to data that
come with Python or scikit-learn, and still loads, has samples and can be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GROUPS = (
    "classic CNNs",
    "recurrent",
    "attention",
    "generative",
    "vision tasks",
    "audio, time series",
)
LIMIT_BYTES = 500_000
"""Weights up to this size are committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoo:
    """What the table of the zoo says of a recipe.

    Attributes:
        group: the part of the table, one of GROUPS.
        title: the architecture's name as the field writes it.
        data: what it was trained or is fed on, a few words.
        weights: "trained", or "random": full size, for shape, speed and compile checks.
        specs: names in the file that are a ModelSpec; each is a row and a package of its own. The first is SPEC.
        stages: stage -> the name of its spec: a row and a package more, of these one after the other (tensors flow by
            name), judged by SPEC.
        parts: the `part` of each file of weights, where a recipe saves several.
        arguments: command -> further arguments for it: {"compile": ("--shapes", "x:1x9..4x9..8x9")}.
    """

    group: str
    title: str
    data: str
    weights: Literal["trained", "random"] = "trained"
    specs: tuple[str, ...] = ("SPEC",)
    stages: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ("",)
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group '{self.group}' is none of the zoo's: {', '.join(GROUPS)}")


def weights_file(recipe: str | Path, part: str = "") -> Path:
    """Where the weights of a recipe (or one net of it, `part`) lie: beside it if they are there, else in the cache."""
    beside, cached = weights_files(recipe, part)
    return beside if beside.is_file() else cached


def weights_files(recipe: str | Path, part: str = "") -> tuple[Path, Path]:
    """The two places where weights can lie: beside the recipe, and in the cache."""
    path = Path(recipe).resolve()
    name = f"{path.stem}{'-' if part else ''}{part}.safetensors"
    return path.parent / name, path.parent / "cache" / name
