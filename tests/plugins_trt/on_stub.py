"""`on_device.py` where the driver is the stub of driver.c: the real launcher and bindings, the host's kernels."""

from __future__ import annotations

import ctypes
import sys

from plugins_trt.errors import PluginError
from plugins_trt.operator import KernelPlan, Operator
from plugins_trt.registry import operator
from tests.cuda_on_host.host import host_kernel
from tests.plugins_trt.on_device import assert_all_agree

NAMES = ("layer_norm_residual_sum", "layer_norm_residual_int8", "group_norm_silu")


def main() -> None:
    stub = ctypes.CDLL("libcuda.so.1")

    def choose(op: Operator, plan: KernelPlan) -> None:
        kernel = host_kernel(op.source(), plan.entry, plan.constants, file_name=op.kernel_file)
        stub.stub_kernel(kernel.library._name.encode(), plan.entry.encode())
        for _, offset, size in kernel.shared:
            stub.stub_shared(ctypes.c_size_t(offset), ctypes.c_uint64(size))

    launches = assert_all_agree([operator(name) for name in NAMES], tactics=1, before=choose)
    left = stub.stub_live()

    def nothing(op: Operator, plan: KernelPlan) -> None:
        stub.stub_kernel(b"", b"another_kernel")

    try:
        assert_all_agree([operator(NAMES[0])], tactics=1, calls=1, before=nothing)
    except PluginError as error:
        print(f"refused: {error}")
    print(f"{launches} launches agree, {left} things left on the GPU, {stub.stub_live()} after an error")


if __name__ == "__main__":
    sys.exit(main())
