"""Requests that repeat: a steady client sends the same bytes before other tensors, so they are understood once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgekit.serve.grpc.codec import PREFIX, Message, decode_request, encode_framed, parsed, split
from edgekit.serve.messages import InferRequest, InferResponse, WantedOutput
from edgekit.serve.model import Model
from edgekit.serve.repeat import MISSES, Repeat
from edgekit.serve.turn_batch import Given
from edgekit.tensors import Tensors

_MAX_PLANS = 64
_MAX_PLAN_BYTES = 4096

Find: TypeAlias = Callable[[str, str], Model]


@dataclass(slots=True)
class Plan:
    """What a message's prefix and its bytes before the first raw tensor mean.

    `tensors`: name, numpy type, shape, and where in the framed message they are.
    `between` are the bytes that must stand between raw tensors, with their places.
    `repeating` answers such messages the short way; after `misses` it is not looked for again.
    """

    size: int
    model: Model
    version: str
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    between: tuple[tuple[int, bytes], ...]
    outputs: tuple[WantedOutput, ...]
    parameters: dict[str, Any]
    repeating: Repeating | None = None
    misses: int = 0

    @property
    def learns(self) -> bool:
        """Whether the short way is to be looked for."""
        if self.repeating is None:
            return self.misses < MISSES
        return not self.repeating.holds

    def read(self, framed: Message, id_bytes: int) -> InferRequest | None:
        """What `framed`, whose id takes so many bytes, asks; None if it is not such a message after all."""
        for at, wanted in self.between:
            if framed[at + id_bytes : at + id_bytes + len(wanted)] != wanted:
                return None
        feed = {}
        for name, dtype, shape, offset in self.tensors:
            value: np.ndarray[Any, Any] = np.ndarray(shape, dtype, framed, offset + id_bytes)
            feed[name] = value if value.flags.aligned else value.copy()
        return InferRequest(feed, "", self.outputs, True, self.parameters)


class Repeating:
    """The short way through gRPC for messages that repeat in all but their tensors: see `edgekit.serve.repeat`.

    `joins`: whether `join` is to be asked, not `now`. `size`: bytes of an answer like the first.
    """

    def __init__(self, repeat: Repeat, plan: Plan, result: InferResponse) -> None:
        self._repeat, self._between = repeat, plan.between
        parts, self.size = encode_framed(result)
        self._before = [bytes(part) for part in parts[::2]]
        self.joins = repeat.joins

    @property
    def holds(self) -> bool:
        """Whether nothing has changed that it rests on."""
        return self._repeat.holds

    def join(self, framed: Message, given: Given) -> bool:
        """Run `framed` as this turn of the loop ends; False if that cannot be."""
        return self._fits(framed) and self._repeat.join(framed, 0, given)

    def now(self, framed: Message) -> tuple[list[bytes | memoryview], int] | None:
        """The framed answer to `framed` and its bytes, if it can be had at once. Raises what the runtime does."""
        outputs = self._repeat.run_now(framed, 0) if self._fits(framed) else None
        return None if outputs is None else self.answer(outputs)

    def _fits(self, framed: Message) -> bool:
        between = self._between
        return not between or all(framed[at : at + len(wanted)] == wanted for at, wanted in between)

    def failed(self, error: Exception, started_ns: int) -> None:
        """Count what `now` raised."""
        self._repeat.count_failed(error, started_ns)

    def answer(self, outputs: Tensors) -> tuple[list[bytes | memoryview], int]:
        """The framed answer of `outputs` and its bytes."""
        parts: list[bytes | memoryview] = []
        for before, (name, shape) in zip(self._before, self._repeat.shapes):
            value = outputs[name]
            if value.shape != shape:
                return encode_framed(self._repeat.response(outputs))
            parts += (before, value.tobytes())
        return parts, self.size


class InferReader:
    """Reads inference requests, with a memory of what came before raw tensors. `find` names the model."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._plans: dict[bytes, Plan] = {}
        self._cuts: dict[int, int] = {}

    def plan(self, framed: Message) -> Plan | None:
        """What a message with its prefix means, if another like it was read before, and neither has an id."""
        cut = self._cuts.get(len(framed))
        plan = None if cut is None else self._plans.get(bytes(framed[:cut]))
        return plan if plan is not None and plan.size == len(framed) else None

    def recall(self, framed: Message) -> tuple[Model, InferRequest] | None:
        """What a message with its prefix asks, if another like it was read before (but for its id)."""
        plan = self.plan(framed)
        if plan is not None:
            return self._recalled(plan, framed, 0)
        at, end = _id_field(framed)
        size = len(framed) - (end - at)
        cut = self._cuts.get(size)
        if cut is None or at == end or PREFIX.unpack_from(framed) != (0, len(framed) - PREFIX.size):
            return None
        plan = self._plans.get(_head_without_id(framed, at, end, cut))
        if plan is None or plan.size != size:
            return None
        known = self._recalled(plan, framed, end - at)
        if known is not None:
            try:
                known[1].id = str(framed[at + 2 : end], "utf-8")
            except UnicodeDecodeError:
                return None
        return known

    def _recalled(self, plan: Plan, framed: Message, id_bytes: int) -> tuple[Model, InferRequest] | None:
        model = plan.model
        if self._find(model.name, plan.version) is not model:  # it was replaced
            self._plans.clear()
            return None
        request = plan.read(framed, id_bytes)
        return None if request is None else (model, request)

    def read(self, message: Message) -> tuple[Model, InferRequest]:
        """The model that `message` asks and what it asks.

        Raises:
            InputError: the message does not keep the protocol.
            RequestError: no such model (404), or the part that is not raw tensors is too long (413).
        """
        head, raws, offsets = split(memoryview(message))
        request = parsed(head)
        model = self._find(request.model_name, request.model_version)
        out = decode_request(request, raws, model.input_specs)
        self._remember(message, model, request.model_version, out, offsets)
        return model, out

    def _remember(
        self, message: Message, model: Model, version: str, request: InferRequest, offsets: list[int]
    ) -> None:
        """Keep what requests like this one mean, where nothing but the raw tensors can change.

        That leaves out tensors elsewhere, and types whose bytes need a look: BOOL, BYTES. An id is passed over.
        """
        values = request.feed.values()
        plain = all(v.dtype.kind in "iuf" and v.size for v in values) and not request.shared
        if not plain or len(offsets) != len(values) or not offsets or offsets[0] > _MAX_PLAN_BYTES:
            return
        framed = PREFIX.pack(0, len(message)) + bytes(message[: offsets[0]])
        id_at, id_end = _id_field(framed)
        if request.id and id_at == id_end:
            return
        shift = PREFIX.size - (id_end - id_at)
        tensors, between, at = [], [], offsets[0]
        for (name, value), offset in zip(request.feed.items(), offsets):
            if offset > at:
                between.append((at + shift, bytes(message[at:offset])))
            tensors.append((name, value.dtype, value.shape, offset + shift))
            at = offset + value.nbytes
        if at != len(message):
            return
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
            self._cuts.clear()
        size, cut = len(message) + shift, offsets[0] + shift
        self._cuts[size] = cut
        self._plans[_head_without_id(framed, id_at, id_end, cut)] = Plan(
            size, model, version, tuple(tensors), tuple(between), request.outputs, request.parameters
        )


def _id_field(framed: Message) -> tuple[int, int]:
    """Where the id of a message with its prefix begins and ends, tag and length included; equal if there is none.

    It is found after name and version, which is where libraries write it, if none of them takes over 127 bytes.
    """
    at = PREFIX.size
    try:
        for tag in (0x0A, 0x12):
            if framed[at] == tag:
                if framed[at + 1] > 127:
                    return 0, 0
                at += 2 + framed[at + 1]
        if framed[at] == 0x1A and 0 < framed[at + 1] < 128:
            return at, at + 2 + framed[at + 1]
    except IndexError:
        pass
    return 0, 0


def _head_without_id(framed: Message, at: int, end: int, cut: int) -> bytes:
    """What stands before the first raw tensor, as it were without an id. `cut` is its length."""
    if at == end:
        return bytes(framed[:cut])
    prefix = PREFIX.pack(0, PREFIX.unpack_from(framed)[1] - (end - at))
    return prefix + bytes(framed[PREFIX.size : at]) + bytes(framed[end : cut + end - at])
