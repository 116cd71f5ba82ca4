"""A whole LSTM layer, one or both directions, over all time steps in one kernel launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt.body import Body, Of
from plugins_trt.dims import Size, ceil_div, differ, maximum, power_of_two_at_least
from plugins_trt.limits import REGISTERS, WARP
from plugins_trt.operator import C_TYPES, Attribute, Call, Cost, KernelPlan, Operator, Port, TensorType

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

MAX_HIDDEN = {"float16": 256, "bfloat16": 256, "float32": 128}
"""The most hidden units that the kernel takes: beyond, nearly all of the weights would come from L2 in each step."""

GATES = 4
_UNITS = 8
"""Hidden units of a group (see the kernel)."""
_TILE = 16
"""Columns of the weights that are multiplied at a time."""
_FINITE = 3e38
"""Where the function body clips its gates, since an infinity times a zero of its identity matrix would be NaN."""


@dataclass(frozen=True)
class Layout:
    """How a block holds the weights: `groups` of 8 units a warp, `resident` of all `tiles` in registers."""

    groups: int
    threads: int
    resident: int
    tiles: int


class Lstm(Operator):
    """The recurrence of an LSTM layer, from the input's part of its gates.

    For each direction, with `[i, o, f, g] = gates[t] + weight_hh h(t-1)`, which is ONNX's order of the gates:

        c(t) = sigmoid(f) c(t-1) + sigmoid(i) tanh(g)
        h(t) = sigmoid(o) tanh(c(t))

    Layouts are ONNX's (`layout=0`), except that the directions of `gates` and `y` lie side by side in the last
    dimension, where the next layer's matrix product wants them:

        gates      [steps, batch, directions * 4 * hidden]   x weight_ih^T + both biases, of all steps
        weight_hh  [directions, 4 * hidden, hidden]
        h0, c0     [directions, batch, hidden]
        y          [steps, batch, directions * hidden]        h of every step
        h, c       [directions, batch, hidden]                after the last step of each direction

    The kernel rounds h to the tensors' dtype after each step, as cuDNN does; products are summed, and c is kept, in
    float32. So a stream that is cut into calls differs from one call by the rounding of c where it is cut.
    `plugins_trt.torch.lstm` takes x, the weights and the biases themselves, in PyTorch's order.
    """

    name = "lstm"
    summary = "LSTM layer over all time steps, one or both directions"
    kernel_file = "lstm.cu"
    inputs = (
        Port("gates", ranks=(3,), doc="[steps, batch, directions * 4 * hidden]: x weight_ih^T + biases"),
        Port("weight_hh", like="gates", ranks=(3,), doc="[directions, 4 * hidden, hidden], gates i, o, f, g"),
        Port("h0", like="gates", ranks=(3,), doc="[directions, batch, hidden]"),
        Port("c0", like="gates", ranks=(3,), doc="[directions, batch, hidden]"),
    )
    outputs = ("y", "h", "c")
    attributes = (
        Attribute("hidden_size", "int", None, "units of one direction", minimum=1),
        Attribute("direction", "str", "forward", "as ONNX", choices=("forward", "reverse", "bidirectional")),
    )

    def check(self, call: Call) -> None:
        """Shapes that agree with each other and with the attributes."""
        hidden, directions = call.integer("hidden_size"), _directions(call)
        steps, batch, _ = call.inputs[0].shape
        wanted: tuple[tuple[Any, ...], ...] = (
            (steps, batch, directions * GATES * hidden),
            (directions, GATES * hidden, hidden),
            (directions, batch, hidden),
            (directions, batch, hidden),
        )
        for port, given, shape in zip(self.inputs, call.inputs, wanted):
            if any(map(differ, given.shape, shape)):
                sizes = ", ".join(map(str, shape))
                raise call.refuse(
                    f"input '{port.name}' is {given}; with hidden_size {hidden} and direction "
                    f"'{call.text('direction')}' it is [{sizes}]."
                )

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """y, h and c."""
        gates, hidden, directions = call.inputs[0], call.integer("hidden_size"), _directions(call)
        steps, batch, _ = gates.shape
        state = TensorType(gates.dtype, (directions, batch, hidden))
        return TensorType(gates.dtype, (steps, batch, directions * hidden)), state, state

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """In float64 from step to step, rounded once."""
        import numpy as np

        gates, weight, h0, c0 = (array.astype(np.float64) for array in arrays)
        steps, batch, _ = gates.shape
        directions, _, hidden = weight.shape
        y = np.zeros((steps, batch, directions, hidden))
        h, c = h0.copy(), c0.copy()
        given = gates.reshape(steps, batch, directions, GATES, hidden)
        with np.errstate(all="ignore"):
            for direction in range(directions):
                order = range(steps)
                for t in reversed(order) if _backwards(call, direction) else order:
                    product = (h[direction] @ weight[direction].T).reshape(batch, GATES, hidden)
                    i, o, f, g = np.moveaxis(given[t, :, direction] + product, 1, 0)
                    c[direction] = _sigmoid(f) * c[direction] + _sigmoid(i) * np.tanh(g)
                    h[direction] = y[t, :, direction] = _sigmoid(o) * np.tanh(c[direction])
        dtype = arrays[0].dtype
        return y.reshape(steps, batch, directions * hidden).astype(dtype), h.astype(dtype), c.astype(dtype)

    def body(self, b: Body) -> None:
        """ONNX's own LSTM in float32, fed with the gates through an identity matrix in place of input weights.

        The identity costs a product of its own: this is what runs where there is no plugin, not the fast way there.
        """
        gates, weight, h0, c0 = (b.cast(name, "float32") for name in b.inputs)
        limit = b.constant(_FINITE)
        gates = b.op("Clip", gates, b.op("Neg", limit), limit)
        directions = b.size("weight_hh", 0)
        rows = b.op("Mul", directions, b.size("weight_hh", 1))
        identity = b.op("EyeLike", b.op("ConstantOfShape", b.op("Concat", rows, rows, axis=0)), dtype=1)
        shape = b.op("Concat", directions, b.constant([-1]), rows, axis=0)
        y, h, c = b.op(
            "LSTM", gates, b.op("Reshape", identity, shape), weight, "", "", h0, c0, outputs=3,
            direction=Of("direction"), hidden_size=Of("hidden_size"),
        )  # fmt: skip
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.constant([0, 0, -1]))
        b.returns(*(b.op("CastLike", value, "gates") for value in (y, h, c)))

    def fuse(self, graph: Graph) -> None:
        """ONNX's LSTM with constant weights: see `plugins_trt.lstm_fuse`."""
        from plugins_trt.lstm_fuse import fuse_lstm

        fuse_lstm(self, graph, most_hidden=MAX_HIDDEN)

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """16 times the groups of units of a warp, plus the sequences of a block."""
        dtype, hidden, batch = call.inputs[0].dtype, call.integer("hidden_size"), call.inputs[0].shape[1]
        if hidden > MAX_HIDDEN[dtype]:
            raise call.refuse(
                f"in {dtype} the registers of sm_{sm}, 256 KiB, hold enough of the weights for hidden sizes up to "
                f"{MAX_HIDDEN[dtype]}, and this is {hidden}. The node runs through its function body."
            )
        if dtype == "bfloat16" and sm < 80:
            raise call.refuse(
                f"tensor cores of sm_{sm} know no bfloat16; sm_80's do. Use float16, or the node runs through its "
                "function body."
            )
        most = 8 if dtype != "float32" else 4
        full = most if isinstance(batch, Size) else min(most, power_of_two_at_least(batch))
        return tuple(16 * layout.groups + count for count in dict.fromkeys((full, 1)) for layout in _layouts(call)[:2])

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """`tactic` as `tactics` counts them. Steps and batch may be free."""
        groups, sequences = divmod(tactic, 16)
        if tactic not in self.tactics(call, sm):
            known = ", ".join(map(str, self.tactics(call, sm)))
            raise call.refuse(f"there is no tactic {tactic} for this call; there are {known}.")
        gates, hidden, directions = call.inputs[0], call.integer("hidden_size"), _directions(call)
        steps, batch, _ = gates.shape
        layout = next(layout for layout in _layouts(call) if layout.groups == groups)
        return KernelPlan(
            entry="edgekit_lstm",
            constants={
                "T": C_TYPES[gates.dtype],
                "HIDDEN": hidden,
                "DIRECTIONS": directions,
                "REVERSE": int(call.text("direction") == "reverse"),
                "SEQUENCES": sequences,
                "GROUPS": groups,
                "THREADS": layout.threads,
                "RESIDENT": layout.resident,
                "VEC": next(vec for vec in (4, 2, 1) if hidden % vec == 0),
                "TENSOR_CORES": int(gates.item_bytes == 2),
            },
            grid=(maximum(1, ceil_div(batch, sequences)), directions, 1),
            block=(layout.threads, 1, 1),
            scalars=(steps, batch),
        )

    def cost(self, call: Call) -> Cost:
        """Each tensor once, weights too. For a unit and step 4 rows of multiply-adds (8 hidden), 4 additions of the
        gates, 5 activations and 4 operations on c and h. A recurrence stays far above the time that follows from these:
        its steps wait for each other."""
        steps, batch, _ = call.inputs[0].sizes
        hidden = call.integer("hidden_size")
        written = sum(made.bytes for made in self.output_types(call))
        flops = steps * batch * _directions(call) * hidden * (2 * GATES * hidden + GATES + 5 + 4)
        return Cost(sum(given.bytes for given in call.inputs), written, flops)

    def examples(self) -> tuple[Call, ...]:
        """A keyword spotter's or VAD's layer, a batch of it, a speech encoder's two directions, the largest."""
        return (
            self.example(100, 1, 128, "float16"),
            self.example(100, 64, 128, "float16"),
            self.example(250, 4, 192, "float16", "bidirectional"),
            self.example(100, 1, 256, "float16"),
            self.example(32, 1, 64, "float32"),
        )

    def small_examples(self) -> tuple[Call, ...]:
        """One of everything; several sequences, both directions, sizes that are no multiple of a group or of a tile;
        one step; more sequences than one block's; packs of 4, 2 and 1; weights that do not fit into registers."""
        return (
            self.example(1, 1, 1, "float32"),
            self.example(5, 3, 20, "float16", "bidirectional"),
            self.example(4, 7, 33, "float16", "reverse"),
            self.example(3, 9, 18, "bfloat16"),
            self.example(6, 5, 40, "float32", "bidirectional"),
            self.example(2, 1, 150, "float16"),
            self.example(2, 2, 116, "float32"),
        )

    def example(self, steps: int, batch: int, hidden: int, dtype: str, direction: str = "forward") -> Call:
        """A call of that size."""
        directions = 2 if direction == "bidirectional" else 1
        state = TensorType(dtype, (directions, batch, hidden))
        return self.call(
            TensorType(dtype, (steps, batch, directions * GATES * hidden)),
            TensorType(dtype, (directions, GATES * hidden, hidden)),
            state,
            state,
            hidden_size=hidden,
            direction=direction,
        )

    def sample(self, call: Call, seed: int = 0) -> tuple[NDArray[Any], ...]:
        """Normally distributed, the weights as a trained layer's: with a deviation of 1 / sqrt(hidden)."""
        gates, weight, h0, c0 = super().sample(call, seed)
        return gates, (weight / weight.shape[-1] ** 0.5).astype(weight.dtype), h0, c0

    def in_torch(self, node: Callable[..., Any]) -> Callable[..., Any]:
        """The whole layer, from x: see `plugins_trt.lstm_torch.lstm`."""
        from plugins_trt.lstm_torch import layer_of

        return layer_of(node)


def _directions(call: Call) -> int:
    return 2 if call.text("direction") == "bidirectional" else 1


def _backwards(call: Call, direction: int) -> bool:
    return direction == 1 or call.text("direction") == "reverse"


def _sigmoid(x: NDArray[Any]) -> Any:
    import numpy as np

    return 1 / (1 + np.exp(-x))


def _layouts(call: Call) -> list[Layout]:
    """The ways to hold the weights, those that hold most of them first.

    The registers that a thread needs besides are what the compiler was seen to need, on the target that needs most.
    """
    hidden, item_bytes = call.integer("hidden_size"), call.inputs[0].item_bytes
    units, tiles = -(-hidden // _UNITS), -(-hidden // _TILE)
    found = []
    for groups in (1, 2, 3, 4):
        warps = -(-units // groups)
        # A multiprocessor has four parts with a quarter of the registers each, so warps count in fours.
        limit = min(255, REGISTERS // (-(-warps // 4) * 4 * WARP) // 8 * 8)
        tile = groups * GATES * item_bytes
        other = 34 + 18 * groups if item_bytes == 2 else 24 + 48 * groups
        resident = min(tiles, (limit - other) // tile)
        if resident < tiles:  # the loop that reads the rest needs more, most of all where it reads single elements
            if hidden % 2 and limit < 255:
                continue
            loop = 24 * groups if hidden % 2 else 18 * groups if hidden % 4 or groups == 4 else 10
            resident = min(tiles - 1, (limit - other - loop) // tile)
        if warps * WARP <= 1024 and resident >= 1 and (groups == 1 or warps >= 4):
            found.append(Layout(groups, warps * WARP, resident, tiles))
    return sorted(found, key=lambda layout: (-layout.resident, layout.groups))


OPERATORS = (Lstm(),)
