from __future__ import annotations

import pytest

from edgekit.engine.options import BuildOptions, build_digest
from edgekit.engine.profiles import Range

SMALL = {"x": Range(min=(1,), opt=(1,), max=(4,))}


@pytest.mark.parametrize(
    "other",
    [
        BuildOptions(workspace_mb=100),
        BuildOptions(level=5),
        BuildOptions(hardware="ampere+"),
        BuildOptions(version_compatible=True),
        BuildOptions(strip=True),
        BuildOptions(refit=True),
        BuildOptions(dla=0),
        BuildOptions(sparsity=True),
        BuildOptions(verbosity="none"),
        BuildOptions(profiles=(SMALL,)),
    ],
)
def test_every_option_that_changes_the_engine_changes_the_digest(other: BuildOptions) -> None:
    facts = {"model": "a" * 64, "target": [87, ""], "module": ["tensorrt", "10.3"]}
    assert build_digest(other, **facts) != build_digest(BuildOptions(), **facts)
    assert set(other.record()) <= set(BuildOptions.__struct_fields__)
    assert bool(other.record()) != bool(other.profiles)


def test_the_facts_count_and_the_timing_cache_does_not() -> None:
    one = build_digest(BuildOptions(), model="a", target=[87, ""])
    assert one == build_digest(BuildOptions(timing_cache=False), target=[87, ""], model="a")
    assert one != build_digest(BuildOptions(), model="b", target=[87, ""])
    assert one != build_digest(BuildOptions(), model="a", target=[86, ""])


def test_names_tell_variants_of_an_engine_apart() -> None:
    assert BuildOptions(level=5).suffix() == ""
    names = {
        BuildOptions(hardware="same").suffix(),
        BuildOptions(hardware="ampere+").suffix(),
        BuildOptions(version_compatible=True).suffix(),
        BuildOptions(strip=True).suffix(),
        BuildOptions(refit=True).suffix(),
        BuildOptions(dla=1).suffix(),
        BuildOptions(dla=0).suffix(),
        BuildOptions(sparsity=True).suffix(),
    }
    assert len(names) == 8
