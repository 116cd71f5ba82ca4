from __future__ import annotations

import pytest

from edgekit.errors import InputError
from edgekit.runtime.ranges import Range, choose_profile

SMALL = Range((1, 3, 224, 224), (1, 3, 224, 224), (8, 3, 224, 224))
LARGE = Range((1, 3, 224, 224), (32, 3, 224, 224), (64, 3, 224, 224))


def pick(
    *shapes: tuple[int, ...], profiles: list[dict[str, Range]] | None = None, names: tuple[str, ...] = ("x",)
) -> int:
    return choose_profile(profiles or [{"x": SMALL}, {"x": LARGE}], names, shapes, variant="fp16")


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 0), (8, 1), (9, 1), (64, 1)])
def test_the_profile_tuned_for_the_nearest_shape(batch: int, profile: int) -> None:
    assert pick((batch, 3, 224, 224)) == profile


def test_an_engine_of_fixed_shapes_has_one_profile() -> None:
    assert choose_profile([{}], ("x",), ((1, 3),), variant="fp16") == 0


def test_the_accepted_range_is_in_the_error() -> None:
    with pytest.raises(InputError) as error:
        pick((65, 3, 224, 224))
    assert str(error.value) == (
        "Input 'x': got (65,3,224,224), engine 'fp16' accepts (1..8,3,224,224) or (1..64,3,224,224). "
        "Send a shape in that range, or compile again with --shapes x:65x3x224x224..65x3x224x224"
    )


def test_inputs_that_no_profile_accepts_together() -> None:
    a, b = Range((1,), (4,), (8,)), Range((10,), (20,), (30,))
    profiles = [{"x": a, "y": a}, {"x": b, "y": b}]
    assert pick((12,), (12,), profiles=profiles, names=("x", "y")) == 1
    with pytest.raises(InputError, match=r"No profile of engine 'fp16' accepts x \(4\), y \(20\) together"):
        pick((4,), (20,), profiles=profiles, names=("x", "y"))


def test_a_range_reads_as_a_shape() -> None:
    assert str(SMALL) == "(1..8,3,224,224)"
    assert not SMALL.holds((1, 3, 224))
    assert SMALL.distance(SMALL.opt) == 0
