"""ONNX Runtime on a device through bound buffers: allocated once a shape, reused by every run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import BackendError
from edgekit.tensors import Tensors, TensorSpec, numpy_dtype, shape_text

SHAPES_KEPT = 16
"""Shapes whose buffers are kept; the one not used for longest makes room."""

ShapeKey = tuple[tuple[int, ...], ...]


def can_bind(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether every tensor is of a type that lies in device memory as numpy has it."""
    return not any(s.dtype in ("string", "bfloat16") for s in (*inputs, *outputs))


def sized_by_inputs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether the shapes of the inputs decide those of the outputs: each free dimension is one of an input."""
    known = {d for s in inputs for d in s.shape if isinstance(d, str)}
    return all(isinstance(d, int) or d in known for s in outputs for d in s.shape)


@dataclass
class _Slot:
    """Buffers of one shape, used by one run at a time. `outputs` is empty until sizes are known, or if they vary."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    graph: int


class BoundRunner:
    """Runs a session of ONNX Runtime with inputs and outputs in the memory of `device_type` ("cuda", "cpu").

    Several threads get buffers of their own; `in_turn` makes their runs take turns, which one stream needs. With
    `graphs` they always do, as ONNX Runtime's CUDA graphs ask for, and a shape has one set of buffers.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device_type: str,
        device_id: int,
        graphs: bool = False,
        in_turn: bool = False,
    ) -> None:
        """`ort` is the onnxruntime module, `session` an InferenceSession of it.

        Raises:
            BackendError: `graphs` for a model whose output sizes depend on values.
        """
        self._ort, self._session = ort, session
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._device = (device_type, device_id)
        self._graphs = graphs
        self._fixed = sized_by_inputs(inputs, outputs)
        if graphs and not self._fixed:
            free = next(s for s in outputs if not sized_by_inputs(inputs, (s,)))
            raise BackendError(
                f"CUDA graphs need outputs whose size follows from the inputs; '{free.name}' is "
                f"{shape_text(free.shape)}. Leave graphs out for this model."
            )
        self._lock = threading.Lock()
        self._turn = threading.Lock() if graphs or in_turn else None
        self._free: OrderedDict[ShapeKey, list[_Slot]] = OrderedDict()
        self._made = 0

    def run(self, feed: Tensors) -> Tensors:
        """Run once; `feed` is checked and in the order of the inputs. The result is the caller's own."""
        key = tuple(feed[s.name].shape for s in self._inputs)
        if self._turn is not None:
            with self._turn:
                return self._run_in(key, feed)
        return self._run_in(key, feed)

    def _run_in(self, key: ShapeKey, feed: Tensors) -> Tensors:
        slot = self._take(key, feed)
        for name, value in slot.inputs.items():
            if feed[name].size:
                value.update_inplace(feed[name])
        if not slot.outputs:  # anew each time: a binding keeps what a run allocated, with its shape
            for spec in self._outputs:
                slot.binding.bind_output(spec.name, *self._device)
        self._call(slot)
        values = slot.outputs or dict(zip((s.name for s in self._outputs), slot.binding.get_outputs()))
        out = {name: np.array(value.numpy()) if self._on_host else value.numpy() for name, value in values.items()}
        self._settle(slot, values)
        with self._lock:
            kept = self._free.setdefault(key, [])
            kept.append(slot)
            self._free.move_to_end(key)
            while len(self._free) > SHAPES_KEPT:
                self._forget(self._free.popitem(last=False)[1])
        return out

    def _forget(self, slots: list[_Slot]) -> None:
        """Let go of the graphs of buffers that are given up, where ONNX Runtime can."""
        release = getattr(self._session, "release_captured_graph", None)
        if self._graphs and release is not None:
            for slot in slots:
                release(slot.graph)

    @property
    def _on_host(self) -> bool:
        return self._device[0] == "cpu"

    def _call(self, slot: _Slot) -> None:
        if not self._graphs:
            self._session.run_with_iobinding(slot.binding)
            return
        options = self._ort.RunOptions()
        # -1 runs without a graph: the outputs have no fixed address before the first run
        options.add_run_config_entry("gpu_graph_id", str(slot.graph if slot.outputs else -1))
        self._session.run_with_iobinding(slot.binding, options)

    def _take(self, key: ShapeKey, feed: Tensors) -> _Slot:
        with self._lock:
            kept = self._free.get(key)
            if kept:
                return kept.pop()
            self._made += 1
            graph = self._made
        binding = self._session.io_binding()
        inputs = {}
        for spec in self._inputs:
            value = self._allocate(feed[spec.name].shape, spec.dtype)
            binding.bind_ortvalue_input(spec.name, value)
            inputs[spec.name] = value
        return _Slot(binding, inputs, {}, graph)

    def _settle(self, slot: _Slot, values: dict[str, Any]) -> None:
        """Give the outputs memory of their own once a run has shown their shapes."""
        if slot.outputs or not self._fixed:
            return
        for spec in self._outputs:
            value = self._allocate(tuple(values[spec.name].shape()), spec.dtype)
            slot.binding.bind_ortvalue_output(spec.name, value)
            slot.outputs[spec.name] = value

    def _allocate(self, shape: Sequence[int], dtype: str) -> Any:
        make: Callable[..., Any] = self._ort.OrtValue.ortvalue_from_shape_and_type
        return make(list(shape), numpy_dtype(dtype).type, *self._device)

    def close(self) -> None:
        """Release the buffers."""
        with self._lock:
            self._free.clear()
