"""Residual add and LayerNorm or RMSNorm in one pass, with the sum kept or not, and with an INT8 output or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugins_trt.body import Body, Of
from plugins_trt.dims import ceil_div, differ, maximum, power_of_two_at_least, product
from plugins_trt.operator import (
    C_TYPES,
    Attribute,
    Call,
    Cost,
    KernelPlan,
    Operator,
    Port,
    TensorType,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

MAX_COLUMNS = 32768
"""The longest row that the registers of one block hold."""

_WARP = 32
_HELD = 32
"""Floats of a row that one thread keeps; with more, blocks of 1024 threads would spill."""


class LayerNormResidual(Operator):
    """`y = norm(x + residual) * weight + bias` over the last dimension.

    `keep_sum` adds the output `sum`, x + residual. `int8` makes y INT8, quantized with the attribute `scale`. These are
    operators of their own, since a TensorRT plugin has one fixed list of outputs.
    """

    kernel_file = "layer_norm_residual.cu"
    inputs = (
        Port("x", doc="[..., columns]"),
        Port("residual", like="x", doc="the shape of x"),
        Port("weight", like="x", ranks=(1,), doc="[columns]"),
        Port("bias", like="x", ranks=(1,), doc="[columns]; zeros for an RMSNorm without one"),
    )

    def __init__(self, *, keep_sum: bool, int8: bool) -> None:
        self.keep_sum, self.int8 = keep_sum, int8
        self.name = "layer_norm_residual" + "_sum" * keep_sum + "_int8" * int8
        self.summary = "Residual add and LayerNorm or RMSNorm" + ", INT8 out" * int8 + ", and the sum" * keep_sum
        self.outputs = ("y", "sum") if keep_sum else ("y",)
        self.attributes = (
            Attribute("epsilon", "float", 1e-5, "added to the variance", minimum=0.0),
            Attribute("rms", "int", 0, "1: RMSNorm, the mean is not subtracted", choices=(0, 1)),
        )
        if int8:
            self.attributes += (Attribute("scale", "float", None, "y is quantized as round(y / scale)", minimum=1e-30),)

    def check(self, call: Call) -> None:
        """Shapes that agree, and a row that is not empty."""
        x, residual, weight, bias = (given.shape for given in call.inputs)
        if len(x) < 1:
            raise call.refuse("input 'x' is a scalar; it needs a dimension to normalise over.")
        if len(x) != len(residual) or any(map(differ, x, residual)):
            raise call.refuse(f"'x' is {call.inputs[0]} and 'residual' {call.inputs[1]}; they have one shape.")
        for name, given in (("weight", weight), ("bias", bias)):
            if differ(x[-1], given[0]):
                raise call.refuse(f"'{name}' has {given[0]} elements for rows of {x[-1]}.")
        if x[-1] == 0:
            raise call.refuse("the last dimension is 0: there is nothing to normalise over.")

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """y (INT8 or as x), and the sum."""
        x = call.inputs[0]
        y = TensorType("int8" if self.int8 else x.dtype, x.shape)
        return (y, x) if self.keep_sum else (y,)

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """In float64, rounded once."""
        import numpy as np

        x, residual, weight, bias = (array.astype(np.float64) for array in arrays)
        with np.errstate(all="ignore"):
            total = x + residual
            centred = total if call.integer("rms") else total - total.mean(axis=-1, keepdims=True)
            deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + call.number("epsilon"))
            y = centred / deviation * weight + bias
            if self.int8:
                rounded = np.clip(np.rint(y / np.float32(call.number("scale"))), -128, 127)
                out = np.where(np.isnan(rounded), 0, rounded).astype(np.int8)
            else:
                out = y.astype(arrays[0].dtype)
            return (out, total.astype(arrays[0].dtype)) if self.keep_sum else (out,)

    def body(self, b: Body) -> None:
        """In float32: Add, two ReduceMeans, and what makes a LayerNorm of them."""
        x, residual, weight, bias = (b.cast(name, "float32") for name in b.inputs)
        total = b.op("Add", x, residual)
        last = b.constant([-1])
        subtract = b.op("Sub", b.constant(1.0), b.cast(b.attribute("rms"), "float32"))
        mean = b.op("Mul", b.op("ReduceMean", total, last, keepdims=1), subtract)
        centred = b.op("Sub", total, mean)
        variance = b.op("ReduceMean", b.op("Mul", centred, centred), last, keepdims=1)
        deviation = b.op("Sqrt", b.op("Add", variance, b.attribute("epsilon")))
        y = b.op("Add", b.op("Mul", b.op("Div", centred, deviation), weight), bias)
        if self.int8:
            zero = b.constant(0, "int8")
            y = b.op("QuantizeLinear", y, b.op("Constant", value_float=Of("scale")), zero)
        else:
            y = b.op("CastLike", y, "x")
        b.returns(*((y, b.op("CastLike", total, "x")) if self.keep_sum else (y,)))

    def fuse(self, graph: Graph) -> None:
        """A residual Add that LayerNorm or RMSNorm follows: see `plugins_trt.norm_fuse`."""
        from plugins_trt.norm_fuse import fuse_norms

        if not self.int8:
            fuse_norms(self, graph, keep_sum=self.keep_sum)

    def _lanes(self, columns: int, vec: int, threads: int) -> int:
        """Threads that share a row: as much of a warp as has work, else the whole block."""
        packs = columns // vec
        return min(_WARP, power_of_two_at_least(packs)) if packs * vec <= _WARP * _HELD else threads

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """Threads of a block."""
        columns = call.known(call.inputs[0].shape[-1], "the last dimension of 'x'")
        if columns > MAX_COLUMNS:
            raise call.refuse(
                f"rows of {columns} do not fit into the registers of one block; {MAX_COLUMNS} do. "
                "The node runs through its function body."
            )
        if columns <= _WARP * _HELD:
            return (128, 256, 512)
        return tuple(threads for threads in (128, 256, 512, 1024) if threads * _HELD >= columns)

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """`tactic` is the block's size. The number of rows may be free, the length of a row may not."""
        x = call.inputs[0]
        columns = call.known(x.shape[-1], "the last dimension of 'x'")
        vec = next(v for v in (8, 4, 2, 1) if v * x.item_bytes <= 16 and columns % v == 0)
        lanes = self._lanes(columns, vec, tactic)
        rows = product(x.shape[:-1])
        return KernelPlan(
            entry="edgekit_layer_norm_residual",
            constants={
                "T": C_TYPES[x.dtype],
                "OUT": "i8" if self.int8 else C_TYPES[x.dtype],
                "VEC": vec,
                "LANES": lanes,
                "THREADS": tactic,
                "PACKS": -(-columns // (vec * lanes)),
                "RMS": call.integer("rms"),
                "KEEP_SUM": int(self.keep_sum),
                "EPSILON": call.number("epsilon"),
                "INVERSE_SCALE": 1.0 / call.number("scale") if self.int8 else 1.0,
            },
            grid=(maximum(1, ceil_div(rows, tactic // lanes)), 1, 1),
            block=(tactic, 1, 1),
            scalars=(rows, columns),
        )

    def cost(self, call: Call) -> Cost:
        """Each element once; add, mean, difference, square and sum, scale, multiply-add: 8 operations."""
        written = sum(made.bytes for made in self.output_types(call))
        return Cost(sum(given.bytes for given in call.inputs), written, 8 * call.inputs[0].elements)

    def examples(self) -> tuple[Call, ...]:
        """A ViT-B block (196 + 1 tokens of 768), a small language model's, a long row."""
        shapes = ((8, 197, 768), (1, 512, 2048), (4, 128, 96))
        extra = {"scale": 0.05} if self.int8 else {}
        return tuple(self.example(shape, "float16", **extra) for shape in shapes)

    def small_examples(self) -> tuple[Call, ...]:
        """One column, part of a warp, a warp, a block; packs of 8, 4, 2 and 1; rows that do not fill the last block."""
        cases: tuple[tuple[tuple[int, ...], str, int], ...] = (
            ((1,), "float32", 0),
            ((3, 5, 64), "float16", 0),
            ((7, 33), "float32", 1),
            ((2, 198), "bfloat16", 0),
            ((2, 3, 1500), "float16", 1),
            ((1, 1025), "float32", 0),
        )
        extra = {"scale": 0.05} if self.int8 else {}
        return tuple(self.example(shape, dtype, rms=rms, **extra) for shape, dtype, rms in cases)

    def example(self, shape: tuple[int, ...], dtype: str, **attributes: Any) -> Call:
        """A call on `x` of `shape`, with the other inputs to match."""
        x, row = TensorType(dtype, shape), TensorType(dtype, shape[-1:])
        return self.call(x, x, row, row, **attributes)


OPERATORS = tuple(LayerNormResidual(keep_sum=s, int8=q) for q in (False, True) for s in (False, True))
