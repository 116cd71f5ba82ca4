"""The kernels of plugins_trt on a GPU: that they agree with their references, and how fast they are."""

from __future__ import annotations

import importlib
from typing import Any


def check_plugins(seconds: float) -> dict[str, Any]:
    """Every operator's small examples with every tactic, then the figures of benchmarks/plugins.py.

    `ok` is False if a kernel is wrong or something asked for is missed; figures are null where PyTorch has no CUDA.
    """
    from benchmarks.plugins import all_cases, measured
    from plugins_trt.registry import operators
    from tests.plugins_trt.on_device import assert_all_agree

    agreement: dict[str, Any] = {}
    for name, operator in operators().items():
        try:
            agreement[name] = assert_all_agree([operator])
        except Exception as error:  # the other kernels are still checked
            agreement[name] = f"{type(error).__name__}: {error}"
    right = all(isinstance(launches, int) for launches in agreement.values())
    found: dict[str, Any] = {"ok": right, "launches_that_agree": agreement, "figures": None}
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        return {**found, "reason": "figures need a PyTorch built for CUDA"}
    figures, missed = measured(torch, all_cases([]), min(seconds, 0.3))
    return {**found, "ok": right and not missed, "figures": figures, "missed": missed}
