"""Runs kernels on this machine's GPU through the CUDA driver: to check them and to time them, without TensorRT."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from plugins_trt.compile import compiled_kernel
from plugins_trt.errors import PluginError
from plugins_trt.limits import DEFAULT_SHARED_BYTES
from plugins_trt.operator import Call, KernelPlan, Operator, TensorType, numpy_dtype
from plugins_trt.quick import ptx_target, this_gpu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Launcher:
    """One GPU, its context and a stream. A context manager.

    Raises:
        MissingLibraryError: cuda-bindings, a driver or a GPU is missing.
    """

    def __init__(self, device: int = 0) -> None:
        self.sm = this_gpu(device)
        self.cuda: Any = importlib.import_module("cuda.bindings.driver")
        self._device = self.done(self.cuda.cuDeviceGet(device))
        self.done(self.cuda.cuCtxSetCurrent(self.done(self.cuda.cuDevicePrimaryCtxRetain(self._device))))
        self.stream = self.done(self.cuda.cuStreamCreate(0))
        self._modules: dict[bytes, Any] = {}

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module in self._modules.values():
            self.cuda.cuModuleUnload(module)
        self.cuda.cuStreamDestroy(self.stream)
        self.cuda.cuDevicePrimaryCtxRelease(self._device)

    def run(
        self, operator: Operator, call: Call, *arrays: NDArray[Any], tactic: int | None = None
    ) -> tuple[NDArray[np.generic], ...]:
        """The outputs of the operator's kernel for `arrays`, whose types are those of `call`.

        Raises:
            PluginError: the driver refuses the kernel, or the kernel fails.
            UnsupportedCallError, CompileError: see `Operator.plan` and `plugins_trt.compile`.
        """
        with self.prepare(operator, call, *arrays, tactic=tactic) as prepared:
            prepared.launch()
            return prepared.outputs()

    def prepare(
        self, operator: Operator, call: Call, *arrays: NDArray[Any], tactic: int | None = None
    ) -> PreparedKernel:
        """The kernel, loaded, with its inputs on the GPU: for launching it many times. Raises as `run` does."""
        chosen = operator.tactics(call, self.sm)[0] if tactic is None else tactic
        plan = operator.plan(call, tactic=chosen, sm=self.sm)
        kernel = compiled_kernel(operator, plan, sm=ptx_target(self.sm))
        function = self._function(kernel.cubin if kernel.sm == self.sm else kernel.ptx.encode() + b"\0", kernel.entry)
        if plan.shared_bytes + kernel.resources.shared_bytes > DEFAULT_SHARED_BYTES:
            name = self.cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.done(self.cuda.cuFuncSetAttribute(function, name, plan.shared_bytes))
        return PreparedKernel(self, function, plan, arrays, operator.output_types(call))

    def _function(self, image: bytes, entry: str) -> Any:
        if image not in self._modules:
            self._modules[image] = self.done(self.cuda.cuModuleLoadData(image))
        return self.done(self.cuda.cuModuleGetFunction(self._modules[image], entry.encode()))

    def done(self, answer: tuple[Any, ...]) -> Any:
        """What a call of the driver returned. Raises PluginError with its error's name."""
        status, *rest = answer
        if status != self.cuda.CUresult.CUDA_SUCCESS:
            raise PluginError(f"The CUDA driver says {status.name}.")
        return rest[0] if rest else None


class PreparedKernel:
    """A loaded kernel with its buffers, which it frees when it is closed; a context manager. See `Launcher.prepare`."""

    def __init__(
        self,
        owner: Launcher,
        function: Any,
        plan: KernelPlan,
        arrays: Sequence[NDArray[Any]],
        outputs: Sequence[TensorType],
    ) -> None:
        self._owner, self._function = owner, function
        self._buffers: list[Any] = []
        self._outputs = outputs
        shapes = [array.shape for array in arrays]
        scalars = plan.scalars_for(shapes)
        self._size = (*plan.grid_for(shapes), *plan.block, plan.shared_bytes)
        try:
            inputs = [self._upload(array) for array in arrays]
            self._made = [self._filled(given) for given in outputs]
        except BaseException:
            self.close()
            raise
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        values = (*map(int, inputs), *scalars, *map(int, self._made))
        self._arguments = values, (*[pointer] * len(inputs), *[integer] * len(scalars), *[pointer] * len(outputs))

    def __enter__(self) -> PreparedKernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffers."""
        while self._buffers:
            self._owner.cuda.cuMemFree(self._buffers.pop())

    def launch(self) -> None:
        """Put the kernel on the launcher's stream; does not wait."""
        cuda, owner = self._owner.cuda, self._owner
        owner.done(cuda.cuLaunchKernel(self._function, *self._size, owner.stream, self._arguments, 0))

    def outputs(self) -> tuple[NDArray[np.generic], ...]:
        """Wait, and copy the outputs back."""
        import numpy as np

        cuda, owner = self._owner.cuda, self._owner
        owner.done(cuda.cuStreamSynchronize(owner.stream))
        out = []
        for given, buffer in zip(self._outputs, self._made):
            array = np.empty(given.sizes, numpy_dtype(given.dtype))
            if array.nbytes:
                owner.done(cuda.cuMemcpyDtoH(array.ctypes.data, buffer, array.nbytes))
            out.append(array)
        return tuple(out)

    def _allocated(self, size: int) -> Any:
        buffer = self._owner.done(self._owner.cuda.cuMemAlloc(max(1, size)))
        self._buffers.append(buffer)
        return buffer

    def _upload(self, array: NDArray[Any]) -> Any:
        import numpy as np

        held = np.ascontiguousarray(array)
        buffer = self._allocated(held.nbytes)
        if held.nbytes:
            self._owner.done(self._owner.cuda.cuMemcpyHtoD(buffer, held.ctypes.data, held.nbytes))
        return buffer

    def _filled(self, given: TensorType) -> Any:
        buffer = self._allocated(given.bytes)
        # NaN in every floating-point type, so that what a kernel leaves out is seen.
        self._owner.done(self._owner.cuda.cuMemsetD8(buffer, 0xFF, max(1, given.bytes)))
        return buffer
