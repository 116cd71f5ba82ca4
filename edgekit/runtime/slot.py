"""One lane through the GPU: a stream with buffers, execution contexts and recorded graphs of its own.

While one slot computes, another copies: that is how copies and compute overlap. A slot serves one run at a time.

TensorRT binds a recorded graph to the state of the context it was recorded from, so each graph keeps a context; the
contexts of a slot share one piece of scratch memory, since its stream runs them one after the other.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import BackendError
from edgekit.runtime.buffers import Staging
from edgekit.runtime.cuda import DeviceMemory, Gpu, Graph
from edgekit.runtime.cuda_errors import CudaError
from edgekit.runtime.ranges import Shapes
from edgekit.runtime.trt_load import Journal, run_error
from edgekit.tensors import Tensors
from edgekit.trt_api import no_collection, scratch_bytes

_log = logging.getLogger(__name__)

GRAPHS_KEPT = 16
"""Recorded shapes of a slot; the one not used for longest makes room."""

Key = tuple[int, Shapes]


@dataclass(frozen=True)
class IoTensor:
    """An input or output of an engine. `on_host`: a shape tensor, which TensorRT reads or writes in host memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    on_host: bool


@dataclass(frozen=True)
class Plan:
    """What all slots of a session share: the module, the engine, and how it is run."""

    trt: Any
    engine: Any
    journal: Journal
    variant: str
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    graphs: bool
    mapped: bool

    @property
    def native_graphs(self) -> bool:
        """Whether the module records graphs itself (TensorRT-RTX, which goes on compiling while it runs)."""
        return self.graphs and hasattr(self.trt, "CudaGraphStrategy")

    @property
    def shape_inputs(self) -> bool:
        """Whether values of an input decide shapes, so that equal shapes do not mean equal work."""
        return any(t.on_host for t in self.inputs)

    def scratch_bytes(self) -> int:
        """Scratch memory of a context, for the largest profile."""
        return scratch_bytes(self.engine)

    def context(self, scratch: DeviceMemory) -> Any:
        """A new execution context that works in `scratch`. Raises BackendError."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with no_collection():
            if self.native_graphs:
                config = self.engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(strategy)
                config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                context = self.engine.create_execution_context(config)
            else:
                context = self.engine.create_execution_context(strategy)
        if context is None:
            raise run_error(self.journal.take(), variant=self.variant)
        context.set_device_memory(scratch.address, scratch.nbytes)
        return context


@dataclass
class _Recorded:
    context: Any
    graph: Graph


class Slot:
    """See the module. `start` puts a run on the stream, `finish` waits for it."""

    def __init__(self, gpu: Gpu, plan: Plan) -> None:
        """Raises BackendError if the memory does not suffice; nothing is left then."""
        self._gpu, self._plan = gpu, plan
        self._graphs: OrderedDict[Key, _Recorded] = OrderedDict()
        self._layouts: dict[Key, dict[str, tuple[int, ...]]] = {}
        self._seen: set[Key] = set()
        self._refused: set[Key] = set()
        self._shaped: Key | None = None
        self._bound = False
        self._profile = -1
        self._varying: dict[str, Any] = {}
        self._staging = {
            t.name: Staging(gpu, t.dtype, mapped=plan.mapped, on_host=t.on_host) for t in (*plan.inputs, *plan.outputs)
        }
        self.stream = gpu.stream()
        self._scratch = gpu.device_memory(plan.scratch_bytes())
        self._context = plan.context(self._scratch)

    def start(self, profile: int, feed: Tensors) -> None:
        """Copy `feed` in, compute and copy out: all put on the stream, none of it waited for.

        `feed` is checked, and its shapes fit `profile`. Raises BackendError.
        """
        self._gpu.activate()
        plan = self._plan
        key = (profile, tuple(feed[t.name].shape for t in plan.inputs))
        for tensor in plan.inputs:
            self._fit(tensor.name, feed[tensor.name].shape)
            np.copyto(self._staging[tensor.name].host, feed[tensor.name])
        layout = self._layout(key)
        for name, shape in layout.items():
            self._fit(name, shape)
        recorded = self._graphs.get(key)
        if recorded is not None:
            self._graphs.move_to_end(key)
            recorded.graph.launch(self.stream)
            return
        if self._records(key):
            self._record(key)
            return
        self._shape(key)
        self._bind(self._context)
        self._work(self._context)
        self._seen.add(key)

    def finish(self) -> Tensors:
        """Wait for the run and return copies of its outputs. Raises BackendError: the GPU failed."""
        self.stream.synchronize()
        if self._varying:
            for name, allocator in self._varying.items():
                self._staging[name].fit(allocator.shape)
                self._staging[name].download(self.stream)
            self.stream.synchronize()
        return {t.name: np.array(self._staging[t.name].host) for t in self._plan.outputs}

    def abandon(self) -> None:
        """Let what a failed `start` has put on the stream come to its end."""
        with contextlib.suppress(BackendError):
            self.stream.synchronize()

    def run_bound(self, profile: int, shapes: Shapes, addresses: Mapping[str, int]) -> None:
        """Compute on the memory at `addresses` (of all inputs and outputs), and wait. Raises BackendError."""
        self._gpu.activate()
        self._shape((profile, shapes))
        self._bound = False
        try:
            for name, address in addresses.items():
                self._yes(self._context.set_tensor_address(name, address))
            self._yes(self._context.execute_async_v3(self.stream.handle))
        finally:
            self.stream.synchronize()

    def compute_s(self, profile: int, feed: Tensors, repeats: int) -> float:
        """Seconds of GPU time of one run without its copies, over `repeats` runs put on the stream at once."""
        self.start(profile, feed)
        self._shape((profile, tuple(feed[t.name].shape for t in self._plan.inputs)))
        self._bind(self._context)
        with self._gpu.event(timing=True) as begin, self._gpu.event(timing=True) as end:
            self.stream.record(begin)
            for _ in range(repeats):
                self._yes(self._context.execute_async_v3(self.stream.handle))
            self.stream.record(end)
            end.synchronize()
            return end.milliseconds_since(begin) / 1000 / repeats

    def output_shapes(self, profile: int, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs for inputs of `shapes`; -1 where they depend on values."""
        self._gpu.activate()
        return self._layout((profile, shapes))

    def _layout(self, key: Key) -> dict[str, tuple[int, ...]]:
        layout = self._layouts.get(key)
        if layout is None or self._plan.shape_inputs:
            self._shape(key)
            context = self._context
            layout = {t.name: tuple(context.get_tensor_shape(t.name)) for t in self._plan.outputs}
            if len(self._layouts) > 64 * GRAPHS_KEPT:
                self._layouts.clear()
            self._layouts[key] = layout
        return layout

    def _fit(self, name: str, shape: Sequence[int]) -> None:
        known = [d for d in shape if d >= 0]
        if self._staging[name].fit(known if len(known) == len(shape) else (0,)):
            self._bound = False
            self._drop_graphs()

    def _shape(self, key: Key) -> None:
        """Bring the context of direct runs to a profile and shapes."""
        if key == self._shaped and not self._plan.shape_inputs:
            return
        self._shaped = None
        self._profile = self._shape_context(self._context, key, self._profile)
        self._shaped = key

    def _shape_context(self, context: Any, key: Key, active: int) -> int:
        profile, shapes = key
        if active != profile:
            self._yes(context.set_optimization_profile_async(profile, self.stream.handle))
        for tensor, shape in zip(self._plan.inputs, shapes):
            self._yes(context.set_input_shape(tensor.name, shape))
            if tensor.on_host:
                self._yes(context.set_tensor_address(tensor.name, self._staging[tensor.name].address))
        return profile

    def _bind(self, context: Any) -> None:
        """Tell a context where the tensors are; the one of direct runs only when they moved."""
        if context is self._context and self._bound:
            return
        for name, staging in self._staging.items():
            self._yes(context.set_tensor_address(name, staging.address))
        if context is self._context:
            self._bound = True
            self._let_vary()

    def _let_vary(self) -> None:
        """Give outputs whose size depends on values an allocator."""
        layout = self._layouts[self._shaped] if self._shaped is not None else {}
        for name, shape in layout.items():
            if any(d < 0 for d in shape) and name not in self._varying:
                allocator = _allocator(self._plan.trt, self._staging[name])
                self._yes(self._context.set_output_allocator(name, allocator))
                self._varying[name] = allocator

    def _work(self, context: Any) -> None:
        for tensor in self._plan.inputs:
            self._staging[tensor.name].upload(self.stream)
        self._yes(context.execute_async_v3(self.stream.handle))
        for tensor in self._plan.outputs:
            if tensor.name not in self._varying:
                self._staging[tensor.name].download(self.stream)

    def _records(self, key: Key) -> bool:
        """Whether this run is followed by recording it: the second of its shape, unless that failed before."""
        plan = self._plan
        usable = plan.graphs and not plan.native_graphs and not plan.shape_inputs and not self._varying
        return usable and key in self._seen and key not in self._refused

    def _record(self, key: Key) -> None:
        """Run in a new context, as TensorRT asks for before a recording, then record the same for later runs."""
        context = self._plan.context(self._scratch)
        self._shape_context(context, key, 0)
        self._bind(context)
        self._work(context)
        self.stream.synchronize()
        try:
            capturable = getattr(context, "is_stream_capturable", lambda stream: True)
            if not capturable(self.stream.handle):
                raise BackendError("the engine cannot be recorded")
            graph = self._gpu.graph(self.stream, lambda: self._work(context))
        except BackendError as error:
            if isinstance(error, CudaError) and not error.capture:
                raise
            self._refused.add(key)
            _log.info("Engine '%s' runs without a CUDA graph: %s", self._plan.variant, error)
            return
        self._graphs[key] = _Recorded(context, graph)
        while len(self._graphs) > GRAPHS_KEPT:
            self._graphs.popitem(last=False)[1].graph.close()

    def _drop_graphs(self) -> None:
        for recorded in self._graphs.values():
            recorded.graph.close()
        self._graphs.clear()

    def _yes(self, done: bool) -> None:
        if not done:
            raise run_error(self._plan.journal.take(), variant=self._plan.variant)

    def close(self) -> None:
        """Release everything. Safe to call twice; the slot must be idle."""
        self._drop_graphs()
        self._context = None
        self._varying.clear()
        for staging in self._staging.values():
            staging.close()
        self._scratch.close()
        self.stream.close()


def _allocator(trt: Any, staging: Staging) -> Any:
    """TensorRT's allocator of one output whose size is known only once it has run."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            try:
                staging.reserve(size)
            except BackendError as error:
                _log.warning("Output '%s': %s", tensor_name, error)
                return 0  # TensorRT then fails the run
            return staging.address

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
