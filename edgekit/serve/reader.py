"""Requests that repeat: a steady client sends the same JSON before other tensors, so it is understood once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.serve.codec import decode_request
from edgekit.serve.messages import InferRequest, WantedOutput
from edgekit.tensors import TensorSpec

MAX_PLANS = 64
MAX_PLAN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What one JSON part means: `tensors` are (name, numpy type, shape, offset in the body)."""

    body_bytes: int
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    outputs: tuple[WantedOutput, ...]
    binary: bool
    parameters: dict[str, Any]

    def read(self, body: bytes) -> InferRequest:
        """The request in `body`."""
        feed = {}
        for name, dtype, shape, offset in self.tensors:
            value: np.ndarray[Any, Any] = np.ndarray(shape, dtype, body, offset)
            feed[name] = value if value.flags.aligned else value.copy()
        return InferRequest(feed, "", self.outputs, self.binary, self.parameters)


class RequestReader:
    """`decode_request` for one model, with a memory of the JSON parts it has seen before raw tensors."""

    def __init__(self, inputs: Mapping[str, TensorSpec]) -> None:
        self._inputs = inputs
        self._plans: dict[bytes, Plan] = {}

    def plan(self, json: bytes, body_bytes: int) -> Plan | None:
        """What `json` in front of raw tensors means in a body of that size, if it came before."""
        plan = self._plans.get(json)
        return plan if plan is not None and plan.body_bytes == body_bytes else None

    def read(self, body: bytes, header_length: int | None) -> InferRequest:
        """The request in `body`; arguments and errors are those of `decode_request`."""
        if not header_length or header_length > MAX_PLAN_BYTES:
            return decode_request(body, header_length, self._inputs)
        head = body[:header_length]
        plan = self.plan(head, len(body))
        if plan is not None:
            return plan.read(body)
        request = decode_request(body, header_length, self._inputs)
        plan = _plan_of(request, len(body), header_length)
        if plan is not None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[head] = plan
        return request


def _plan_of(request: InferRequest, body_bytes: int, header_length: int) -> Plan | None:
    """The plan for requests with the same JSON, or None where something besides it decides.

    That is an id (which changes each time), tensors inside the JSON or in shared memory, and types whose bytes need a
    look: BOOL, BYTES.
    """
    values = request.feed.values()
    plain = all(v.dtype.kind in "iuf" for v in values) and not request.shared
    if request.id or not plain or sum(v.nbytes for v in values) != body_bytes - header_length:
        return None
    tensors, offset = [], header_length
    for name, value in request.feed.items():
        tensors.append((name, value.dtype, value.shape, offset))
        offset += value.nbytes
    return Plan(body_bytes, tuple(tensors), request.outputs, request.binary, request.parameters)
