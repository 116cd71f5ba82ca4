from __future__ import annotations

import pytest

from edgekit.engine.profiles import Range, parse_shapes, profiles_for
from edgekit.errors import UsageError
from edgekit.tensors import TensorSpec

IMAGE = TensorSpec("x", "float32", ("batch", 3, 8, 8))
STATE = TensorSpec("state", "float32", (2, "batch", 4))
AUDIO = TensorSpec("audio", "float32", ("batch", "time"))


def test_one_two_and_three_shapes() -> None:
    full = parse_shapes("x:1x3x8x8..4x3x8x8..16x3x8x8")
    assert full == {"x": Range(min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(16, 3, 8, 8))}
    assert parse_shapes("x:1x3..4x3") == {"x": Range(min=(1, 3), opt=(4, 3), max=(4, 3))}
    assert parse_shapes("x:2x3") == {"x": Range(min=(2, 3), opt=(2, 3), max=(2, 3))}
    both = parse_shapes("x:1x3..2x3, data:0:5")
    assert set(both) == {"x", "data:0"}  # an input's name may hold a colon
    assert str(full["x"]) == "1x3x8x8..4x3x8x8..16x3x8x8"


@pytest.mark.parametrize("text", ["x", "x:", ":1x3", "x:1x", "x:ax3", "x:1..2..3..4", "x:1x3...2x3", "", ","])
def test_what_is_not_a_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--shapes"):
        parse_shapes(text)


def test_zero_and_twice_are_refused() -> None:
    with pytest.raises(UsageError, match="dimension of 0"):
        parse_shapes("x:0x3")
    with pytest.raises(UsageError, match="names 'x' twice"):
        parse_shapes("x:1,x:2")


def test_without_shapes_the_batch_is_free_and_the_rest_is_the_samples() -> None:
    assert profiles_for([IMAGE], [], {}) == ({"x": Range(min=(1, 3, 8, 8), opt=(8, 3, 8, 8), max=(32, 3, 8, 8))},)
    (found,) = profiles_for([AUDIO, STATE], [], {"audio": (100, 576), "state": (2, 100, 4)})
    assert found["audio"] == Range(min=(1, 576), opt=(8, 576), max=(32, 576))
    assert found["state"] == Range(min=(2, 1, 4), opt=(2, 8, 4), max=(2, 32, 4))


def test_one_input_given_decides_the_names_it_shares() -> None:
    (found,) = profiles_for([IMAGE, STATE], [parse_shapes("x:2x3x8x8..2x3x8x8..6x3x8x8")], {})
    assert found["state"] == Range(min=(2, 2, 4), opt=(2, 2, 4), max=(2, 6, 4))


def test_several_profiles_and_none() -> None:
    asked = [parse_shapes("x:1x3x8x8"), parse_shapes("x:1x3x8x8..64x3x8x8")]
    assert [p["x"].max[0] for p in profiles_for([IMAGE], asked, {})] == [1, 64]
    assert profiles_for([TensorSpec("x", "float32", (1, 3))], [parse_shapes("x:1x3")], {}) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y:1x3x8x8", "'y', which is not an input; inputs are x, state"),
        ("x:1x3x8x9", r"gives 'x' \(1,3,8,9\), but the model takes \(batch,3,8,8\)"),
        ("x:1x3x8", r"gives 'x' \(1,3,8\)"),
        ("x:4x3x8x8..2x3x8x8..8x3x8x8", "contradicts itself: 4x3x8x8..2x3x8x8..8x3x8x8"),
        ("x:1x3x8x8..4x3x8x8,state:2x1x4..2x5x4", r"'batch' is 1..4..4 in 'x' and 1..5..5 in 'state'"),
    ],
)
def test_a_profile_that_contradicts_itself_or_the_model(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles_for([IMAGE, STATE], [parse_shapes(text)], {})


def test_a_free_dimension_without_a_size_asks_for_one() -> None:
    with pytest.raises(UsageError, match=r"no size for 'time'.*--shapes audio:1x1\.\.1x1\.\.32x32"):
        profiles_for([AUDIO], [], {})


def test_fixed_models_refuse_other_shapes_too() -> None:
    with pytest.raises(UsageError, match=r"takes \(1,3\)"):
        profiles_for([TensorSpec("x", "float32", (1, 3))], [parse_shapes("x:8x3")], {})
