"""Every operator there is: those of this package, and those of packages that register in `edgekit.plugins`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

from plugins_trt import ENTRY_POINTS
from plugins_trt.errors import PluginError
from plugins_trt.operator import Operator

MODULES = ("decode_nms", "group_norm_silu", "layer_norm_residual", "letterbox_normalize", "lstm", "roi_align")
"""The modules of this package that hold operators; each has a tuple OPERATORS."""


@cache
def operators() -> dict[str, Operator]:
    """Each operator by its name.

    An entry point of the group `edgekit.plugins` names an `Operator`, or several in a list or tuple.

    Raises:
        PluginError: an entry point that cannot be loaded, holds something else, or a name that is taken.
    """
    found: dict[str, Operator] = {}
    for module in MODULES:
        _add(found, importlib.import_module(f"plugins_trt.{module}").OPERATORS, "plugins_trt")
    for point in entry_points(group=ENTRY_POINTS):
        where = f"'{point.value}' ({ENTRY_POINTS} entry point '{point.name}')"
        try:
            given = point.load()
        except Exception as error:
            raise PluginError(f"Plugin {where} cannot be loaded: {error}. Repair or uninstall its package.") from error
        _add(found, given, where)
    return found


def operator(name: str) -> Operator:
    """The operator called `name`. Raises PluginError, with the names there are, if there is none."""
    known = operators()
    if name not in known:
        raise PluginError(f"There is no operator '{name}'. Operators: {', '.join(sorted(known))}.")
    return known[name]


def _add(found: dict[str, Operator], given: object, where: str) -> None:
    several = given if isinstance(given, Iterable) else (given,)
    for one in several:
        if not isinstance(one, Operator):
            raise PluginError(f"{where} gives {type(one).__name__}, not a plugins_trt.operator.Operator.")
        if one.name in found:
            raise PluginError(f"{where} gives an operator '{one.name}', and there is one of that name already.")
        found[one.name] = one
