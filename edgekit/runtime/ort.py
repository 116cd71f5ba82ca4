"""ONNX Runtime: the embedded default, and the reference on every machine."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgekit._lazy import require
from edgekit.errors import BackendError, ModelError, UnsupportedOperatorError
from edgekit.runtime.devices import parse_device
from edgekit.runtime.half_weights import has_half_weights
from edgekit.runtime.ort_bound import BoundRunner, can_bind
from edgekit.runtime.ort_providers import check_started, preload_libraries, providers_for, run_error
from edgekit.runtime.session import LoadedSession
from edgekit.tensors import UNNAMED_DIMS, Feed, FeedChecker, Tensors, TensorSpec, dtype_of

_TYPE_NAMES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}


def physical_cores() -> int:
    """Cores that this process may use, counting hyper-threads once where the kernel tells."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


class OrtSession(LoadedSession):
    """One ONNX file in ONNX Runtime. `run` is safe from several threads."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        variant: str = "onnx",
        threads: int | None = None,
        optimize: bool = True,
        device: str = "cpu",
        tensorrt: bool = False,
        stream: int | None = None,
        graphs: bool = False,
        bind: bool | None = None,
    ) -> None:
        """Load `model`: a path (needed for external data) or the serialised bytes.

        Args:
            model: the ONNX model.
            variant: its id, for messages.
            threads: intra-operator threads on the CPU; None means one a physical core.
            optimize: let ONNX Runtime rewrite the graph.
            device: "cpu", or "cuda:N" for the CUDA provider of onnxruntime-gpu.
            tensorrt: on a GPU, run what TensorRT takes through ONNX Runtime's TensorRT provider.
            stream: on a GPU, the address of the CUDA stream that all work is put on (runs then take turns).
            graphs: on a GPU, record each shape as a CUDA graph (runs then take turns).
            bind: keep inputs and outputs in buffers that are allocated once a shape; None does so on a GPU.

        Raises:
            UsageError: no such device, or an option that the device does not have.
            ModelError: not an ONNX model that ONNX Runtime can read.
            UnsupportedOperatorError: it has an operator that ONNX Runtime does not know.
            MissingDependencyError: ONNX Runtime, or its build for the device, is not installed.
            BackendError: the device's libraries do not load.
        """
        place = parse_device(device)
        ort = require("onnxruntime", why="run ONNX models")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._threads = threads or physical_cores()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = model if isinstance(model, bytes) else str(model)
        providers = providers_for(place, ort.get_available_providers(), tensorrt=tensorrt, stream=stream, graphs=graphs)
        if place.kind == "cuda":
            preload_libraries(ort)
        try:
            # without its own fallback, which prints and goes on with the CPU
            self._session: Any = ort.InferenceSession(
                source,
                options,
                providers=providers,
                enable_fallback=0,
                disabled_optimizers=_crashing(model, place.kind),
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise _load_error(model, error) from error
        check_started(providers, self._session.get_providers(), place)
        # the C++ session itself where it can be had: what its wrapper looks at, `_check` has looked at already
        self._execute: Any = getattr(self._session, "_sess", self._session).run
        self._inputs = tuple(_spec(i) for i in self._session.get_inputs())
        self._outputs = tuple(_spec(o) for o in self._session.get_outputs())
        self._check = FeedChecker(self._inputs)
        self._output_names = [o.name for o in self._outputs]
        self._raw_bfloat16 = any(s.dtype == "bfloat16" for s in (*self._inputs, *self._outputs))
        self._variant = variant
        self._place = place
        self._bound = self._runner(ort, graphs, stream) if (place.kind == "cuda" if bind is None else bind) else None
        where = "CPU" if place.kind == "cpu" else f"{'TensorRT' if tensorrt else 'CUDA'} on {place}"
        count = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        self._device = f"ONNX Runtime {ort.__version__}, {where}, {count}"

    def _runner(self, ort: Any, graphs: bool, stream: int | None) -> BoundRunner | None:
        if not can_bind(self._inputs, self._outputs):
            return None
        return BoundRunner(
            ort,
            self._session,
            inputs=self._inputs,
            outputs=self._outputs,
            device_type=self._place.kind,
            device_id=self._place.index,
            graphs=graphs,
            in_turn=graphs or stream is not None,
        )

    @property
    def threads(self) -> int:
        """Intra-operator threads."""
        return self._threads

    def run(self, feed: Feed) -> Tensors:
        """Run once; see `Session.run`."""
        if self._session is None:
            raise BackendError("This session is closed. Open a new one.")
        checked = self._check(feed)
        try:
            if self._bound is not None:
                return self._bound.run(checked)
            if self._raw_bfloat16:
                return self._run_bfloat16(checked)
            values = self._execute(self._output_names, checked, None)
        except Exception as error:
            raise run_error(self._variant, self._place, _first_line(error)) from error
        return dict(zip(self._output_names, values))

    def _run_bfloat16(self, feed: Tensors) -> Tensors:
        """Run with bfloat16 as raw bits, which ONNX Runtime takes and gives as its own values only, not as arrays."""
        ort = require("onnxruntime", why="run ONNX models")
        bfloat16 = dtype_of("bfloat16").onnx
        values = {
            s.name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(feed[s.name], bfloat16)
            if s.dtype == "bfloat16"
            else ort.OrtValue.ortvalue_from_numpy(feed[s.name])
            for s in self._inputs
        }
        out: Tensors = {}
        for spec, value in zip(self._outputs, self._session.run_with_ort_values(self._output_names, values)):
            if spec.dtype != "bfloat16":
                out[spec.name] = value.numpy()
                continue
            shape = tuple(value.shape())
            raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
            out[spec.name] = np.frombuffer(bytearray(raw), np.uint16).reshape(shape)
        return out

    def close(self) -> None:
        """Release the model and its buffers."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        self._session = self._execute = None


def _spec(value: Any) -> TensorSpec:
    kind = value.type
    name = _TYPE_NAMES.get(kind) or kind.removeprefix("tensor(").removesuffix(")")
    unnamed = (f"{value.name}_{i}" for i in range(len(value.shape)))
    shape = tuple(free if d is None or d in UNNAMED_DIMS else d for d, free in zip(value.shape, unnamed))
    return TensorSpec(value.name, name, shape)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _crashing(model: Path | bytes, device: str) -> list[str] | None:
    """Optimizations of ONNX Runtime to leave out, or None. On the CPU 1.31 dies of a segmentation fault on a product of
    FP16 weights behind a Transpose of the batch, once it has made one node of the two."""
    return ["MatmulTransposeFusion"] if device == "cpu" and has_half_weights(model) else None


def _load_error(model: Path | bytes, error: Exception) -> ModelError:
    where = "the model" if isinstance(model, bytes) else f"'{Path(model).name}'"
    text = str(error)
    unknown = ("is not a registered function/op", "No Op registered", "Could not find an implementation")
    if any(u in text for u in unknown):
        return UnsupportedOperatorError(f"ONNX Runtime does not have an operator that {where} needs: {text}")
    return ModelError(f"ONNX Runtime cannot load {where}: {_first_line(error)}")
