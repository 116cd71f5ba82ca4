"""TensorRT and TensorRT-RTX: runs a compiled engine with copies and compute overlapped over several slots.

The module is a parameter: `tensorrt` (10.3 to 11) and `tensorrt_rtx_bindings` are called in the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import BackendError, InputError, ModelError, UsageError
from edgekit.runtime.cuda import DeviceMemory, Gpu
from edgekit.runtime.devices import parse_device
from edgekit.runtime.dlpack import CUDA, DeviceTensor
from edgekit.runtime.ranges import Profile, Range, choose_profile
from edgekit.runtime.session import LoadedSession
from edgekit.runtime.slot import IoTensor, Plan, Slot
from edgekit.runtime.trt_load import DTYPES, Journal, open_engine
from edgekit.tensors import Feed, Tensors, TensorSpec, check_feed, dtype_of, shape_text
from edgekit.trt_api import load_module, no_collection, title_of


class Pending:
    """A run that was started; `result` waits for it."""

    def __init__(self, session: TrtSession, slot: Slot) -> None:
        self._session = session
        self._slot: Slot | None = slot
        self._lock = threading.Lock()
        self._outputs: Tensors | None = None
        self._error: BackendError | None = None

    def result(self) -> Tensors:
        """The outputs. Raises BackendError: the run failed."""
        with self._lock:
            slot, self._slot = self._slot, None
            if slot is not None:
                try:
                    self._outputs = slot.finish()
                except BackendError as error:
                    self._error = error
                finally:
                    self._session._give(slot, self)
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs


class TrtSession(LoadedSession):
    """One engine on one GPU. `run` is safe from several threads; as many of them as there are slots overlap."""

    def __init__(
        self,
        engine: Path | bytes,
        *,
        kind: str = "tensorrt",
        variant: str = "engine",
        device: str = "cuda:0",
        slots: int = 2,
        graphs: bool = True,
        zero_copy: bool | None = None,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        host_code: bool = False,
        module: Any = None,
    ) -> None:
        """Load `engine`: a path or the serialised bytes, which the caller trusts (a package checks its digests).

        Args:
            engine: what `edgekit compile` built for this GPU and this TensorRT.
            kind: "tensorrt" or "tensorrt-rtx".
            variant: its id, for messages.
            device: "cuda:N".
            slots: runs that may be under way at once, each with a stream, buffers and scratch memory of its own.
            graphs: record each shape as a CUDA graph at its second run; where that fails, runs go on without.
            zero_copy: let the GPU work in the host's memory; None does so where the two share it (Jetson).
            inputs, outputs: the package's tensors, for the names of free dimensions.
            host_code: run the code that a version-compatible engine carries; only for an engine that you built.
            module: the TensorRT module; None imports it.

        Raises:
            UsageError: no such device; `slots` below 1.
            MissingDependencyError: TensorRT, cuda-bindings or a library is missing; the message says which.
            ModelError: the engine is damaged, or holds something that edgekit cannot carry.
            BackendError: it is for another GPU or TensorRT, or memory does not suffice.
        """
        place = parse_device(device)
        if place.kind != "cuda":
            raise UsageError(f"Engine '{variant}' runs on a GPU, but device is {place}. Give device='cuda:0'.")
        if slots < 1:
            raise UsageError(f"slots is {slots}; expected 1 or more.")
        trt = module if module is not None else load_module(kind)
        self._variant = variant
        self._journal = Journal()
        self._gpu = Gpu(place.index)
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()
        self._engine: Any = None
        try:
            with no_collection():
                plan = self._load(trt, engine, host_code=host_code, graphs=graphs, zero_copy=zero_copy)
                self._profiles = tuple(_profile(self._engine, plan, i) for i in range(_profile_count(self._engine)))
                self._inputs = tuple(_spec(t, inputs) for t in plan.inputs)
                self._outputs = tuple(_spec(t, outputs) for t in plan.outputs)
                for _ in range(slots):
                    self._slots.append(Slot(self._gpu, plan))
        except BaseException:
            self._release()
            raise
        self._names = [t.name for t in plan.inputs]
        self._free.extend(self._slots)
        self._pending: deque[Pending] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._spare: dict[int, list[DeviceMemory]] = {}
        lanes = "1 slot" if slots == 1 else f"{slots} slots"
        self._device = f"{title_of(trt)}, {self._gpu.name} ({place}), {lanes}"

    def _load(self, trt: Any, engine: Path | bytes, *, host_code: bool, graphs: bool, zero_copy: bool | None) -> Plan:
        self._gpu.activate()
        data = engine if isinstance(engine, bytes) else engine.read_bytes()
        self._logger, self._runtime, self._engine = open_engine(
            trt, data, self._journal, variant=self._variant, sm=self._gpu.sm, host_code=host_code
        )
        tensors = _io_tensors(trt, self._engine, self._variant)
        mapped = self._gpu.integrated if zero_copy is None else zero_copy
        return Plan(trt, self._engine, self._journal, self._variant, *tensors, graphs=graphs, mapped=mapped)

    @property
    def lanes(self) -> int:
        """Runs that may usefully be under way at once."""
        return len(self._slots)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The ranges of shapes that the engine accepts, one mapping a profile."""
        return self._profiles

    def run(self, feed: Feed) -> Tensors:
        """Run once; see `Session.run`. Shapes outside the profiles are refused before anything is started."""
        return self.submit(feed).result()

    def submit(self, feed: Feed) -> Pending:
        """Start a run and return at once, if a slot is free; its copies and compute overlap those of other slots.

        With all slots taken by runs that nobody waits for, the oldest is waited for first.

        Raises:
            InputError: a tensor does not fit the inputs or the profiles.
            BackendError: the runtime failed.
        """
        checked = check_feed(feed, self._inputs)
        profile = self._choose(tuple(checked[n].shape for n in self._names))
        slot = self._take()
        try:
            slot.start(profile, checked)
        except BaseException:
            slot.abandon()
            self._give(slot)
            raise
        pending = Pending(self, slot)
        with self._condition:
            self._pending.append(pending)
            self._condition.notify_all()
        return pending

    def run_many(self, feeds: Iterable[Feed]) -> Iterator[Tensors]:
        """The outputs of each feed, in order; as many runs as there are slots are under way at once."""
        window: deque[Pending] = deque()
        for feed in feeds:
            if len(window) == len(self._slots):
                yield window.popleft().result()
            window.append(self.submit(feed))
        while window:
            yield window.popleft().result()

    def compute_s(self, feed: Feed, *, repeats: int = 20) -> float:
        """Seconds of GPU time that one run takes without its copies: what throughput can be held against.

        Raises:
            InputError, BackendError: as for `submit`.
        """
        checked = check_feed(feed, self._inputs)
        profile = self._choose(tuple(checked[n].shape for n in self._names))
        slot = self._take()
        try:
            return slot.compute_s(profile, checked, repeats)
        finally:
            slot.abandon()
            self._give(slot)

    def run_device(self, feed: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run on tensors that are on this GPU already (objects with `__dlpack__`); the outputs stay there too.

        The outputs' memory belongs to the session: later runs take it up again once an output, and everything made of
        it, is closed or gone; closing the session ends it all.

        Raises:
            InputError: a tensor is elsewhere, or does not fit.
            BackendError: the runtime failed, or the size of an output depends on values.
        """
        slot = self._take()
        taken: dict[str, DeviceTensor] = {}
        memories: dict[str, DeviceMemory] = {}
        try:
            for spec in self._inputs:
                if spec.name not in feed:
                    raise InputError(f"Input '{spec.name}' is missing; expected {spec}.")
                taken[spec.name] = DeviceTensor.take(feed[spec.name], stream=slot.stream.handle)
                _check_device(taken[spec.name], spec, self._gpu.index)
            shapes = tuple(taken[n].shape for n in self._names)
            profile = self._choose(shapes)
            layout = slot.output_shapes(profile, shapes)
            for spec in self._outputs:
                memories[spec.name] = self._memory(spec, layout[spec.name])
            addresses = {n: t.address for n, t in taken.items()} | {n: m.address for n, m in memories.items()}
            slot.run_bound(profile, shapes, addresses)
        except BaseException:
            for memory in memories.values():
                self._take_back(memory)
            raise
        finally:
            for name, tensor in taken.items():
                if tensor is not feed[name]:
                    tensor.close()
            self._give(slot)
        return {s.name: self._tensor(memories[s.name], s.dtype, layout[s.name]) for s in self._outputs}

    def _tensor(self, memory: DeviceMemory, dtype: str, shape: tuple[int, ...]) -> DeviceTensor:
        device = (CUDA, self._gpu.index)
        return DeviceTensor(memory.address, dtype, shape, device=device, release=lambda: self._take_back(memory))

    def _memory(self, spec: TensorSpec, shape: tuple[int, ...]) -> DeviceMemory:
        if any(d < 0 for d in shape):
            raise BackendError(
                f"The size of output '{spec.name}' {shape_text(spec.shape)} depends on values. Use run() instead."
            )
        nbytes = dtype_of(spec.dtype).itemsize
        for size in shape:
            nbytes *= size
        rounded = max(256, 1 << (nbytes - 1).bit_length()) if nbytes else 256
        with self._condition:
            spare = self._spare.get(rounded)
            if spare:
                return spare.pop()
        return self._gpu.device_memory(rounded)

    def _take_back(self, memory: DeviceMemory) -> None:
        with self._condition:
            if not self._closed:
                self._spare.setdefault(memory.nbytes, []).append(memory)

    def _choose(self, shapes: tuple[tuple[int, ...], ...]) -> int:
        return choose_profile(self._profiles, self._names, shapes, variant=self._variant)

    def _take(self) -> Slot:
        """A slot for one run, waited for if all are taken."""
        while True:
            with self._condition:
                if self._closed:
                    raise BackendError("This session is closed. Open a new one.")
                if self._free:
                    return self._free.popleft()
                oldest = self._pending[0] if self._pending else None
                if oldest is None:
                    self._condition.wait()
                    continue
            self._settle(oldest)

    @staticmethod
    def _settle(pending: Pending) -> None:
        with contextlib.suppress(BackendError):  # kept for whoever asks for that result
            pending.result()

    def _give(self, slot: Slot, pending: Pending | None = None) -> None:
        with self._condition:
            if pending is not None and pending in self._pending:
                self._pending.remove(pending)
            self._free.append(slot)
            self._condition.notify_all()

    def close(self) -> None:
        """Wait for the runs under way, then release the engine and all memory. Safe to call twice."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            waiting = list(self._pending)
        for pending in waiting:
            self._settle(pending)
        with self._condition:
            while len(self._free) < len(self._slots):
                self._condition.wait()
            self._condition.notify_all()
        self._release()

    def _release(self) -> None:
        for slot in self._slots:
            slot.close()
        self._slots = []
        self._free.clear()
        self._engine = self._runtime = self._logger = None
        self._gpu.close()


def _io_tensors(trt: Any, engine: Any, variant: str) -> tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]:
    inputs: list[IoTensor] = []
    outputs: list[IoTensor] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise ModelError(
                f"Tensor '{name}' of engine '{variant}' is of type {kind}, which edgekit does not carry. "
                "Cast it inside the model."
            )
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        tensor = IoTensor(name, DTYPES[kind], tuple(engine.get_tensor_shape(name)), on_host)
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    return tuple(inputs), tuple(outputs)


def _profile_count(engine: Any) -> int:
    return max(1, int(engine.num_optimization_profiles))


def _profile(engine: Any, plan: Plan, index: int) -> Profile:
    out = {}
    for tensor in plan.inputs:
        if any(d < 0 for d in tensor.shape) and not tensor.on_host:
            low, tuned, high = engine.get_tensor_profile_shape(tensor.name, index)
            out[tensor.name] = Range(tuple(low), tuple(tuned), tuple(high))
    return out


def _spec(tensor: IoTensor, known: Sequence[TensorSpec]) -> TensorSpec:
    """The tensor with the names that `known` has for its free dimensions."""
    like = next((s for s in known if s.name == tensor.name and len(s.shape) == len(tensor.shape)), None)
    shape: list[int | str] = []
    for i, size in enumerate(tensor.shape):
        named = like.shape[i] if like is not None else ""
        shape.append(size if size >= 0 else named if isinstance(named, str) and named else f"{tensor.name}_{i}")
    return TensorSpec(tensor.name, tensor.dtype, tuple(shape))


def _check_device(tensor: DeviceTensor, spec: TensorSpec, index: int) -> None:
    if tensor.device != (CUDA, index):
        raise InputError(f"Input '{spec.name}' is not on cuda:{index}. Move it there, or use run() for host arrays.")
    fits = len(tensor.shape) == len(spec.shape) and all(
        isinstance(d, str) or d == s for d, s in zip(spec.shape, tensor.shape)
    )
    if tensor.dtype != spec.dtype or not fits:
        raise InputError(f"Input '{spec.name}': got {tensor.dtype}{shape_text(tensor.shape)}, expected {spec}.")
