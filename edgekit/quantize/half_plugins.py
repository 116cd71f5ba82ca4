"""Which tensors of the plugins' operators (domain `edgekit`) are 16 bits where the model is."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgekit.errors import UsageError

DOMAIN = "edgekit"
"""As in plugins_trt, which is only loaded for models that use it."""


def is_plugin(node: Any) -> bool:
    """Whether `node` is an operator of the plugins."""
    return bool(node.domain == DOMAIN)


@cache
def half_ends(name: str, dtype: str) -> tuple[frozenset[int], frozenset[int]] | None:
    """Inputs and outputs of the operator that are `dtype` where its first input is, or None if that cannot be.

    Inputs with a type of their own (the regions of roi_align, in pixels) keep it.

    Raises:
        UsageError: another package's operators cannot be loaded.
    """
    from plugins_trt.errors import PluginError
    from plugins_trt.registry import operators

    try:
        operator = operators().get(name)
    except PluginError as error:
        raise UsageError(str(error)) from error
    if operator is None:
        return None
    first = operator.inputs[0]
    call = next((c for c in operator.small_examples() if c.inputs[0].dtype == dtype), None)
    if dtype not in first.dtypes or call is None:
        return None
    inputs = {i for i, port in enumerate(operator.inputs) if port.like == first.name} | {0}
    outputs = {i for i, made in enumerate(operator.output_types(call)) if made.dtype == dtype}
    return frozenset(inputs), frozenset(outputs)
