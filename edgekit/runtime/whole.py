"""The forms in which a package of stages runs as a whole: those that all stages have, and the best of each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekit.errors import UsageError
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.runtime.select import choose, runnable

BEST = "best"
"""The form in which each stage runs the variant that is best for it."""


def whole_variants(package: Package, wanted: Sequence[str] | None, device: str | None) -> list[Variant]:
    """The forms of a package of stages as if each were one variant, the bytes of its stages summed.

    Raises:
        UsageError: a form in `wanted` that the stages do not have in common, or no form runs on `device`.
    """
    stages = [own for _, own in package.stages()]
    best = [choose(own, device=device).variant for own in stages]
    able = [{v.id: v for v in runnable(own, device=device)} for own in stages]
    forms = {name: [own[name] for own in able] for name in able[0] if all(name in own for own in able)}
    if len({v.id for v in best}) > 1:
        forms[BEST] = best
    unknown = [name for name in wanted or () if name not in forms]
    if unknown:
        raise UsageError(
            f"The stages of '{package.path.name}' do not all have a variant '{unknown[0]}' that runs here; together "
            f"they run as {', '.join(forms)}."
        )
    return [_summed(name, forms[name]) for name in dict.fromkeys(wanted or forms)]


def _summed(name: str, parts: Sequence[Variant]) -> Variant:
    precisions = list(dict.fromkeys(v.precision for v in parts))
    total = sum(v.bytes for v in parts)
    return msgspec.structs.replace(parts[0], id=name, precision=" + ".join(precisions), bytes=total, accuracy=None)
