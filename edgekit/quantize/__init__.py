"""From a float model to INT8 and FP16 variants within an accuracy budget.

`edgekit.quantize(package, precision="int8", max_drop=0.3)` returns the package with the new variant.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.package import Package


class _CallableModule(ModuleType):
    def __call__(self, package: Package, **options: Any) -> Package:
        """Add a variant to `package` and return it; options as for `edgekit.quantize.apply.quantize_package`."""
        from edgekit.quantize.apply import quantize_package

        return quantize_package(package, **options).package


sys.modules[__name__].__class__ = _CallableModule
