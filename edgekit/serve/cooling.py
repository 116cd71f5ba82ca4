"""The steps of `edgekit.serve.heat` carried out: smaller batches, a cheaper variant, fewer requests; and taken back."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.serve.heat import STEPS, Admission
from edgekit.serve.messages import InferRequest, RequestError

if TYPE_CHECKING:
    from edgekit.serve.app import App
    from edgekit.serve.model import Model

LOGGER = logging.getLogger(__name__)

RETRY_S = 5
SMALLER = 4
"""Batches are cut to this part of their size."""

_COST = {"int4": 0, "w4": 0, "int8": 1, "w8": 2, "fp16": 3, "bf16": 3, "fp32": 4}


class Cooling:
    """Steps back before the machine slows itself down: `update` once a second, `check` for each request."""

    def __init__(self, app: App, headroom_c: float) -> None:
        self._app = app
        self.admission = Admission(headroom_c)
        self.shed = 0
        self._replaced: dict[str, dict[str, Any]] = {}

    def update(self) -> None:
        """Look at the machine, and act if the level has changed."""
        headroom_c = self._app.machine.headroom_c
        if not self.admission.update(headroom_c):
            return
        level = self.admission.level
        left = "is not told any more" if headroom_c is None else f"is {headroom_c:.1f} degrees"
        LOGGER.warning("thermal headroom %s: step %d, %s", left, level, STEPS[level])
        for model in self._app.repository.models():
            self._fit(model)
        self._vary(cheaper=level >= 2)

    def refresh(self) -> None:
        """Hold models that were loaded meanwhile to the step that is taken."""
        if self.admission.level:
            for model in self._app.repository.models():
                self._fit(model)

    def check(self, request: InferRequest) -> None:
        """Raises RequestError 503 for requests that are shed; those of priority 1 never are."""
        if request.parameters.get("priority") != 1 and not self.admission.admit():
            self.shed += 1
            raise RequestError(503, "The machine is too hot for every request. Send this again.", retry_after_s=RETRY_S)

    def _fit(self, model: Model) -> None:
        rows = model.worker.full_rows
        model.worker.limit_rows(max(1, rows // SMALLER) if self.admission.level else rows)

    def _vary(self, *, cheaper: bool) -> None:
        library = self._app.library
        if library is None:
            return
        if not cheaper:
            replaced, self._replaced = self._replaced, {}
            for name, extra in replaced.items():
                library.load(name, extra, partial(_said, name, "its own variant"))
            return
        for model in self._app.repository.models():
            variant = cheaper_variant(model)
            if variant and model.name not in self._replaced:
                self._replaced[model.name] = extra = library.extra_of(model.name)
                library.load(model.name, {**extra, "variant": variant}, partial(_said, model.name, variant))


def cheaper_variant(model: Model) -> str:
    """The variant of lowest precision in the model's package below the one that runs; empty without."""
    from edgekit.package import Package

    if model.path is None or not model.path.is_dir():
        return ""
    try:
        variants = Package.open(model.path).manifest.variants
    except EdgekitError:
        return ""
    now = next((v for v in variants if v.id == model.session.variant), None)
    if now is None:
        return ""
    same = [v for v in variants if v.format == now.format and v.target == now.target and v.precision in _COST]
    best = min(same, key=lambda v: _COST[v.precision], default=now)
    return best.id if _COST[best.precision] < _COST.get(now.precision, 0) else ""


def _said(name: str, variant: str, error: Exception | None) -> None:
    if error is None:
        LOGGER.warning("'%s' runs as %s", name, variant)
    else:
        LOGGER.warning("'%s' does not run as %s: %s", name, variant, error)
