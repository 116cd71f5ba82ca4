"""GroupNorm and SiLU in one pass, for the U-Nets of diffusion models; channels first or last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugins_trt.body import Body
from plugins_trt.dims import Dim, Size, differ, maximum, product
from plugins_trt.operator import C_TYPES, FLOATS, Attribute, Call, Cost, KernelPlan, Operator, Port, TensorType

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

_HELD_BYTES = 128
"""What a thread keeps of a group: 32 of the 64 registers that a thread of the largest block has."""
_RUN_BYTES = 64
"""With channels last, the shortest run of memory that a block takes of a pixel."""
_MAX_THREADS = 1024


class GroupNormSilu(Operator):
    """`y = silu(v)` with `v = (x - mean) / sqrt(variance + epsilon) * weight + bias`, over the groups of channels."""

    name = "group_norm_silu"
    summary = "GroupNorm and SiLU"
    kernel_file = "group_norm_silu.cu"
    inputs = (
        Port("x", ranks=(3, 4, 5), doc="[N, C, ...], or [N, ..., C] with channels_last"),
        Port("weight", like="x", ranks=(1,), doc="[C]"),
        Port("bias", like="x", ranks=(1,), doc="[C]"),
    )
    outputs = ("y",)
    attributes = (
        Attribute("groups", "int", None, "groups that the channels are in", minimum=1),
        Attribute("epsilon", "float", 1e-5, "added to the variance", minimum=0.0),
        Attribute("channels_last", "int", 0, "1: x is [N, ..., C]", choices=(0, 1)),
    )

    def check(self, call: Call) -> None:
        """Channels that agree and divide into the groups; a group that is not empty."""
        channels, groups = self._channels(call), call.integer("groups")
        for name, given in zip(("weight", "bias"), call.inputs[1:]):
            if differ(given.shape[0], channels):
                raise call.refuse(f"'{name}' has {given.shape[0]} elements for {channels} channels.")
        if isinstance(channels, int) and (channels % groups or channels == 0):
            raise call.refuse(f"{channels} channels do not divide into {groups} groups.")
        if any(isinstance(size, int) and size == 0 for size in self._spatial(call)):
            raise call.refuse(f"input 'x' is {call.inputs[0]}: a group without elements has no mean.")

    def _channels(self, call: Call) -> Dim:
        return call.inputs[0].shape[-1 if call.integer("channels_last") else 1]

    def _spatial(self, call: Call) -> tuple[Dim, ...]:
        shape = call.inputs[0].shape
        return shape[1:-1] if call.integer("channels_last") else shape[2:]

    def output_types(self, call: Call) -> tuple[TensorType, ...]:
        """As x."""
        return (call.inputs[0],)

    def reference(self, call: Call, *arrays: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        """In float64, rounded once."""
        import numpy as np

        x, weight, bias = (array.astype(np.float64) for array in arrays)
        if call.integer("channels_last"):
            x = np.moveaxis(x, -1, 1)
        groups = x.reshape(x.shape[0], call.integer("groups"), -1)
        with np.errstate(all="ignore"):
            centred = groups - groups.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            normal = (centred / np.sqrt(variance + call.number("epsilon"))).reshape(x.shape)
            along = (1, -1) + (1,) * (x.ndim - 2)
            value = normal * weight.reshape(along) + bias.reshape(along)
            y = value / (1.0 + np.exp(-value))
            if call.integer("channels_last"):
                y = np.moveaxis(y, 1, -1)
            return (np.ascontiguousarray(y.astype(arrays[0].dtype)),)

    def body(self, b: Body) -> None:
        """As [N, A, groups, C / groups, B] either layout is the same computation: channels first has A = 1, channels
        last has B = 1."""
        last = b.op("Reshape", b.attribute("channels_last"), b.constant([1]))
        groups = b.op("Reshape", b.attribute("groups"), b.constant([1]))
        twice = b.op("Mul", last, b.constant([2]))
        before = b.op("Sub", b.constant([1]), twice)  # -1 is what Reshape works out itself
        after = b.op("Sub", twice, b.constant([1]))
        share = b.op("Div", b.shape("weight"), groups)
        view = b.op("Concat", b.size("x", 0), before, groups, share, after, axis=0)
        x = b.op("Reshape", b.cast("x", "float32"), view)
        along = b.op("Concat", b.constant([1, 1]), groups, share, b.constant([1]), axis=0)
        weight, bias = (b.op("Reshape", b.cast(name, "float32"), along) for name in ("weight", "bias"))
        axes = b.constant([1, 3, 4])
        centred = b.op("Sub", x, b.op("ReduceMean", x, axes, keepdims=1))
        variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes, keepdims=1)
        normal = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.attribute("epsilon"))))
        value = b.op("Add", b.op("Mul", normal, weight), bias)
        y = b.op("Mul", value, b.op("Sigmoid", value))
        b.returns(b.op("CastLike", b.op("Reshape", y, b.shape("x")), "x"))

    def fuse(self, graph: Graph) -> None:
        """SiLU after GroupNormalization (operator set 21), or after what PyTorch's exporter makes of a GroupNorm before
        that: InstanceNormalization of the groups between two Reshapes, then Mul and Add."""
        for sigmoid in graph.nodes("Sigmoid"):
            value = sigmoid.input[0]
            silu = graph.follower(sigmoid.output[0], "Mul")
            if silu is None or sorted(silu.input) != sorted((value, sigmoid.output[0])):
                continue
            if len(graph.users(value)) != 2 or graph.leaves(value):
                continue
            found = _group_norm(graph, value) or _instance_norm(graph, value)
            if found is not None and graph.dtype(found.x) in FLOATS:
                old = [*found.nodes, sigmoid, silu]
                inputs = [found.x, found.weight, found.bias]
                graph.replace(self, old, inputs, [silu.output[0]], groups=found.groups, epsilon=found.epsilon)

    def _layout(self, call: Call) -> tuple[int, int, int]:
        """Elements of a pack, groups of a block, packs of a pixel (1 with channels first)."""
        x, groups = call.inputs[0], call.integer("groups")
        channels = call.known(self._channels(call), "the number of channels of 'x'")
        share = channels // groups
        last = call.integer("channels_last")
        spatial = product(self._spatial(call))
        # A pack may not cross from one channel (or, with channels last, from one group) into the next.
        run = share if last else (1 if isinstance(spatial, Size) else spatial)
        vec = next(v for v in (8, 4, 2, 1) if v * x.item_bytes <= 16 and run % v == 0)
        if not last:
            return vec, 1, 1
        together = next((k for k in _divisors(groups) if k * share * x.item_bytes >= _RUN_BYTES), groups)
        packs = together * share // vec
        if packs > _MAX_THREADS:
            raise call.refuse(
                f"groups of {share} channels, channels last, are more than a block has threads for; "
                f"{_MAX_THREADS * vec} are possible. The node runs through its function body."
            )
        return vec, together, packs

    def _hold(self, call: Call, threads: int) -> int:
        """Packs of a thread if a block of `threads` can keep its groups in registers, else 0."""
        spatial = product(self._spatial(call))
        if isinstance(spatial, Size):
            return 0
        vec, _, packs = self._layout(call)
        share = call.known(self._channels(call), "the number of channels of 'x'") // call.integer("groups")
        last = call.integer("channels_last")
        steps = -(-spatial // (threads // packs)) if last else -(-share * spatial // (vec * threads))
        return steps if steps * vec * call.inputs[0].item_bytes <= _HELD_BYTES else 0

    def tactics(self, call: Call, sm: int) -> tuple[int, ...]:
        """Threads of a block, plus the number of slices where x is read twice: 512 holds a group in 512 threads, 516
        reads it twice in 512 threads and four slices."""
        _, _, packs = self._layout(call)
        sizes = [threads for threads in (256, 512, 1024) if threads >= packs]
        holding = [threads for threads in sizes if self._hold(call, threads)]
        twice = [threads + slices for threads in sizes[-2:] for slices in (4, 1, 2, 8)]
        return tuple(holding + twice)

    def plan(self, call: Call, *, tactic: int, sm: int) -> KernelPlan:
        """See `tactics`. The batch and the pixels may be free, the channels may not."""
        threads, slices = tactic // 32 * 32, tactic % 32
        vec, together, packs = self._layout(call)
        channels = call.known(self._channels(call), "the number of channels of 'x'")
        groups = call.integer("groups")
        blocks = call.inputs[0].shape[0] * (groups // together) * max(1, slices)
        return KernelPlan(
            entry="edgekit_group_norm_silu",
            constants={
                "T": C_TYPES[call.inputs[0].dtype],
                "VEC": vec,
                "THREADS": threads,
                "CHANNELS_LAST": call.integer("channels_last"),
                "GROUPS": together,
                "PACKS": packs,
                "HOLD": self._hold(call, threads) if slices == 0 else 0,
                "SLICES": max(1, slices),
                "EPSILON": call.number("epsilon"),
            },
            grid=(maximum(1, blocks), 1, 1),
            block=(threads, 1, 1),
            scalars=(channels, channels // groups, product(self._spatial(call))),
        )

    def cost(self, call: Call) -> Cost:
        """Each element once; 10 operations each: mean, difference, square and sum, normalise, scale and shift, SiLU."""
        x = call.inputs[0]
        return Cost(sum(given.bytes for given in call.inputs), x.bytes, 10 * x.elements)

    def examples(self) -> tuple[Call, ...]:
        """Stable Diffusion's U-Net: its largest and its smallest map, and the largest with channels last."""
        return (
            self.example((2, 320, 64, 64), "float16", groups=32),
            self.example((2, 1280, 8, 8), "float16", groups=32),
            self.example((2, 64, 64, 320), "float16", groups=32, channels_last=1),
        )

    def small_examples(self) -> tuple[Call, ...]:
        """One element a group, packs of 8, 4, 2 and 1, groups that fit and that are read twice, both layouts."""
        return (
            self.example((1, 2, 1, 1), "float32", groups=2),
            self.example((3, 12, 4, 6), "float16", groups=3),
            self.example((2, 6, 5, 7), "bfloat16", groups=2),
            self.example((1, 8, 97, 129), "float16", groups=1),
            self.example((2, 7, 15), "float32", groups=7),
            self.example((2, 5, 3, 40), "float16", groups=4, channels_last=1),
            self.example((1, 61, 67, 6), "float32", groups=2, channels_last=1),
            self.example((1, 40, 40, 96), "float16", groups=1, channels_last=1),
            self.example((1, 2, 3, 2, 9), "bfloat16", groups=3, channels_last=1),
        )

    def example(self, shape: tuple[int, ...], dtype: str, **attributes: Any) -> Call:
        """A call on `x` of `shape`, with weights to match."""
        row = TensorType(dtype, (shape[-1 if attributes.get("channels_last") else 1],))
        return self.call(TensorType(dtype, shape), row, row, **attributes)


@dataclass(frozen=True)
class _Found:
    """A GroupNorm in standard nodes."""

    nodes: list[onnx.NodeProto]
    x: str
    weight: str
    bias: str
    groups: int
    epsilon: float


def _group_norm(graph: Graph, value: str) -> _Found | None:
    """GroupNormalization with a weight for each channel, which is what it has from operator set 21 on."""
    node = graph.producer(value, "GroupNormalization")
    if node is None or graph.opset < 21:
        return None
    given = {a.name: a for a in node.attribute}
    epsilon = given["epsilon"].f if "epsilon" in given else 1e-5
    x, weight, bias = node.input
    if len({graph.dtype(name) for name in node.input}) != 1 or graph.shape(x) is None:
        return None
    return _Found([node], x, weight, bias, given["num_groups"].i, epsilon)


def _instance_norm(graph: Graph, value: str) -> _Found | None:
    """Reshape to [N, groups, -1], InstanceNormalization, Reshape back, Mul and Add with [C, 1, 1]."""
    add = graph.producer(value, "Add")
    mul = None if add is None else graph.producer(add.input[0], "Mul")
    back = None if mul is None else graph.producer(mul.input[0], "Reshape")
    norm = None if back is None else graph.producer(back.input[0], "InstanceNormalization")
    there = None if norm is None else graph.producer(norm.input[0], "Reshape")
    if add is None or mul is None or back is None or norm is None or there is None:
        return None
    inner = (mul.output[0], back.output[0], norm.output[0], there.output[0])
    if any(len(graph.users(name)) != 1 or graph.leaves(name) for name in inner):
        return None
    x, view = there.input[0], graph.constant(there.input[1])
    one, zero = graph.constant(norm.input[1]), graph.constant(norm.input[2])
    weight, bias, shape = graph.constant(mul.input[1]), graph.constant(add.input[1]), graph.shape(x)
    if view is None or one is None or zero is None or weight is None or bias is None or shape is None:
        return None
    along = (shape[1],) + (1,) * (len(shape) - 2)
    grouped = view.size == 3 and view[1] > 0 and view[2] == -1 and view[0] in (0, shape[0])
    plain = (one == 1).all() and (zero == 0).all()
    if not (grouped and plain and weight.shape == along == bias.shape and graph.shape(back.output[0]) == shape):
        return None
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    names = [
        graph.add_constant(name, array.reshape(-1)) for name, array in ((mul.input[1], weight), (add.input[1], bias))
    ]
    return _Found([there, norm, back, mul, add], x, names[0], names[1], int(view[1]), epsilon)


def _divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


OPERATORS = (GroupNormSilu(),)
