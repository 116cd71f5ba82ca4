"""SiLU of x plus one bias a channel, channels last: what a kernel needs to become a TensorRT plugin."""

import numpy as np

from plugins_trt.dims import ceil_div, maximum, product
from plugins_trt.operator import C_TYPES, Cost, KernelPlan, Operator, Port, TensorType


class BiasSilu(Operator):
    """y = v * sigmoid(v), v = x + bias."""

    name = "bias_silu"
    summary = "SiLU of x plus one bias a channel, channels last"
    kernel_file = "bias_silu.cu"  # in kernels/ beside this file
    inputs = (Port("x", ranks=(2, 3, 4)), Port("bias", like="x", ranks=(1,)))
    outputs = ("y",)
    attributes = ()

    def check(self, call):
        """Refuse what makes no sense at all."""
        if call.inputs[0].shape[-1] != call.inputs[1].shape[0]:
            raise call.refuse("'bias' has one element for each channel of 'x'.")

    def output_types(self, call):
        """y is like x."""
        return (call.inputs[0],)

    def reference(self, call, x, bias):
        """What the kernel is held to, in float64."""
        v = x.astype(np.float64) + bias
        return ((v / (1 + np.exp(-v))).astype(x.dtype),)

    def body(self, b):
        """The same in standard ONNX operators, for every runtime without the plugin."""
        v = b.op("Add", b.cast("x", "float32"), b.cast("bias", "float32"))
        b.returns(b.op("CastLike", b.op("Mul", v, b.op("Sigmoid", v)), "x"))

    def fuse(self, graph):
        """Where a model has it in standard operators: Add, Sigmoid and Mul, whose values nothing else needs."""
        for sigmoid in graph.nodes("Sigmoid"):
            v = sigmoid.input[0]
            add, mul = graph.producer(v, "Add"), graph.follower(sigmoid.output[0], "Mul")
            if add is None or mul is None or v not in mul.input or len(graph.users(v)) != 2 or graph.leaves(v):
                continue
            x, bias = add.input
            if graph.shape(x) and graph.shape(bias) == graph.shape(x)[-1:]:
                graph.replace(self, [add, sigmoid, mul], [x, bias], [mul.output[0]])

    def tactics(self, call, sm):
        """Threads a block; TensorRT times all of them."""
        return (256, 128, 512)

    def plan(self, call, *, tactic, sm):
        """Constants, grid and arguments of a launch."""
        x = call.inputs[0]
        channels = call.known(x.shape[-1], "the number of channels")
        vec = next(v for v in (8, 4, 2, 1) if v * x.item_bytes <= 16 and channels % v == 0)
        packs = product(x.shape[:-1]) * (channels // vec)
        constants = {"T": C_TYPES[x.dtype], "VEC": vec, "THREADS": tactic}
        grid = (maximum(1, ceil_div(packs, tactic)), 1, 1)
        return KernelPlan("bias_silu", constants, grid, (tactic, 1, 1), scalars=(packs, channels))

    def cost(self, call):
        """Bytes read and written, and operations, for the roofline."""
        x = call.inputs[0]
        return Cost(x.bytes + call.inputs[1].bytes, x.bytes, 5 * x.elements)

    def examples(self):
        """What reports and benchmarks are made for."""
        return (self.call(TensorType("float16", (8, 56, 56, 64)), TensorType("float16", (64,))),)

    def small_examples(self):
        """What tests run: a single element, odd sizes, packs of every width."""
        shapes = ((1, 1), (3, 40), (5, 7, 6))
        return tuple(self.call(TensorType("float16", s), TensorType("float16", s[-1:])) for s in shapes)


bias_silu = BiasSilu()
