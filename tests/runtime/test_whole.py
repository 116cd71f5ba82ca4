from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.runtime.whole import BEST, whole_variants
from tests.stages import pair, with_int8


def test_the_whole_is_measured_in_the_forms_that_all_stages_have(tmp_path: Path) -> None:
    package = pair(tmp_path)
    sizes = [own.reference.bytes for _, own in package.stages()]
    assert [(v.id, v.bytes) for v in whole_variants(package, None, "cpu")] == [("fp32", sum(sizes))]
    one = with_int8(package, 0)
    assert [(v.id, v.precision) for v in whole_variants(one, None, "cpu")] == [
        ("fp32", "fp32"),
        (BEST, "int8 + fp32"),
    ]
    both = with_int8(one, 1)
    assert [v.id for v in whole_variants(both, None, "cpu")] == ["fp32", "int8"]
    with pytest.raises(UsageError, match="do not all have a variant 'int8' that runs here; together they run as fp32"):
        whole_variants(pair(tmp_path / "other"), ["int8"], "cpu")
