"""What would work on a target, said without it: no GPU and no TensorRT is needed, only the model and what is known.

Where TensorRT-RTX serves the target and is installed, its own parser is asked as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgekit._lazy import available
from edgekit.engine.conditions import conditions_resolved
from edgekit.engine.estimate import activation_bytes, small_constants
from edgekit.engine.faults import node_text, reason_text
from edgekit.engine.operators import (
    AOT_PLUGINS,
    FUNCTIONS,
    STRONGLY_TYPED,
    Answer,
    at_least,
    first_release,
    missing_reason,
    operator_support,
    restriction,
)
from edgekit.engine.plugins import Plugged, PluginOutlook, bodies, is_plugin, plugged, with_stand_ins, without
from edgekit.engine.profiles import Profile
from edgekit.engine.request import COMPILED, profiles_of, sources_of
from edgekit.engine.trt_module import load
from edgekit.errors import BackendError, EdgekitError, UsageError
from edgekit.graphs import STANDARD_DOMAINS, facts, load_model, model_specs, module_of, opset_of, save_model, subgraphs
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.targets import Target, jetpacks
from edgekit.trt_api import MODULES, Kind

if TYPE_CHECKING:
    import onnx

LATEST = "11.4"
"""The TensorRT release that a target without JetPack is judged for."""

OTHERS_GB = {"jetson": 1.5, "": 0.6}
"""Memory that is not the model's: the system and CUDA's context on a Jetson, CUDA's context elsewhere. An estimate."""

_OPSETS = {"8.5": 17, "8.6": 17, "10.3": 19, "10.13": 23, "10.16": 24, "11.4": 24}
"""Release -> the last operator set that it is known to read in full."""

How = Literal["native", "function body", "plugin", "restricted", "missing", "unsure"]


class OperatorOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of operator in a variant: how it would run, and the first nodes concerned where it would not."""

    operator: str
    count: int
    how: How
    why: str = ""
    nodes: tuple[str, ...] = ()


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be expected of one variant on one target with one release.

    Attributes:
        jetpack: "" for a target that has none; release: of TensorRT, or "1.7" of TensorRT-RTX.
        verdict: "works", "unsure" or "breaks"; problems are the reasons, in full sentences.
        operators: every kind of operator of the graph that would be built.
        plugins: the layers that CUDA plugins do, or could do with another release.
        memory_gb: estimated need at the largest shapes: weights, activations, and `OTHERS_GB`; None where a shape is
            unknown. have_gb: what the target has.
        bound_ms: one sample cannot be faster: the larger of operations over the data sheet's rate and weights over its
            bandwidth; None where a figure is unknown.
        portability: where an engine built for it runs.
        parsed: whether the real parser of TensorRT-RTX was asked too.
    """

    target: str
    sm: int
    variant: str
    module: Kind
    jetpack: str
    release: str
    verdict: Literal["works", "unsure", "breaks"]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    operators: tuple[OperatorOutlook, ...]
    memory_gb: float | None
    have_gb: float | None
    bound_ms: float | None
    portability: str
    parsed: bool = False
    plugins: tuple[PluginOutlook, ...] = ()


def plan_package(
    package: Package,
    targets: Sequence[Target],
    *,
    variants: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    jetpack: str | None = None,
    plugins: bool = True,
) -> list[Outlook]:
    """The outlook of every variant on every target, for each JetPack that runs there (or for `jetpack`), with CUDA
    `plugins` where a release has them.

    Without a variant that GPUs gain from, the reference is judged.

    Raises:
        UsageError: an unknown JetPack or variant, or one that does not run on any of the targets.
        ModelError: a variant cannot be read.
    """
    if jetpack is not None and jetpack not in jetpacks():
        raise UsageError(f"JetPack '{jetpack}' is not known; expected one of {', '.join(jetpacks())}.")
    have = any(v.id in COMPILED for v in package.manifest.variants)
    sources = sources_of(package, variants or (() if have else (package.reference.id,)))
    checked = profiles_of(package, profiles)
    out = []
    for source in sources:
        path = package.model_file(source)
        seen = _Model(load_model(path), path, source, checked, plugins=plugins)
        for target in targets:
            for version, kind, release in _releases(target, jetpack):
                out.append(_outlook(seen, target, version, kind, release))
    if not out:
        raise UsageError(f"JetPack {jetpack} does not run on {', '.join(t.name for t in targets)}.")
    return out


def broken(outlooks: Sequence[Outlook]) -> list[str]:
    """Names of "target, variant" pairs that break with every release."""
    pairs: dict[tuple[str, str], bool] = {}
    for o in outlooks:
        key = (o.target, o.variant)
        pairs[key] = pairs.get(key, False) or o.verdict != "breaks"
    return [f"{target} ({variant})" for (target, variant), works in pairs.items() if not works]


def _releases(target: Target, jetpack: str | None) -> list[tuple[str, Kind, str]]:
    """JetPack, module and release that `target` is judged for."""
    if target.jetpacks:
        return [(v, "tensorrt", jetpacks()[v].tensorrt) for v in target.jetpacks if jetpack in (None, v)]
    if target.family == "generic" and target.sm in (72, 87, 110):  # chips that only Jetsons have
        known = [v for v, j in jetpacks().items() if at_least(j.tensorrt, target.architecture.tensorrt)]
        last = target.architecture.last
        known = [v for v in known if not last or at_least(last, jetpacks()[v].tensorrt)]
        return [(v, "tensorrt", jetpacks()[v].tensorrt) for v in known if jetpack in (None, v)]
    if target.rtx and target.family != "datacenter":
        return [("", "tensorrt-rtx", "1.7")]
    return [("", "tensorrt", LATEST)]


class _Model:
    """What of a variant does not depend on the target."""

    def __init__(
        self, model: onnx.ModelProto, path: Path, variant: Variant, profiles: tuple[Profile, ...], *, plugins: bool
    ) -> None:
        if available("onnxruntime"):
            model, _ = conditions_resolved(model, profiles)
        self.model, self.path, self.variant = model, path, variant
        self.opset = opset_of(model)
        self.plugins = plugins
        self.constants = small_constants(model)
        self.types = _quantized_types(model)
        inputs, _ = model_specs(model)
        largest = {
            d: size
            for profile in profiles
            for s in inputs
            if s.name in profile
            for d, size in zip(s.shape, profile[s.name].max)
            if isinstance(d, str)
        }
        self.activation_bytes = activation_bytes(model, largest)
        counted = facts(model)
        self.weight_bytes, self.flops = counted.weight_bytes, counted.flops
        self._parser: list[str] | None = None
        self._plugged: dict[int, Plugged | str] = {}

    def plugged(self, sm: int) -> Plugged | str:
        """The graph with plugins for compute capability `sm`, no kernel compiled for it; or why there are none."""
        if sm not in self._plugged:
            try:
                self._plugged[sm] = made = plugged(self.model, sm=sm, compiles=False)
                del made.model.graph.initializer[:]  # one copy of the weights for each target would be too many
            except BackendError as error:
                self._plugged[sm] = str(error)
        return self._plugged[sm]

    @cached_property
    def for_rtx(self) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """The graph that TensorRT-RTX builds, and the nodes that functions stand for in it."""
        return with_stand_ins(self.model)

    def rtx_faults(self) -> list[str]:
        """What the real parser of TensorRT-RTX says against the model, asked once."""
        if self._parser is None:
            module = load("tensorrt-rtx", why="ask its parser")
            model, gone = self.for_rtx
            with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
                path = self.path
                if gone:
                    path = Path(folder) / self.path.name
                    save_model(model, path)
                self._parser = [
                    f"The parser of TensorRT-RTX refuses {node_text(f, path)}: {reason_text(f)}."
                    for f in module.faults(str(path))
                ]
        return self._parser


def _outlook(seen: _Model, target: Target, jetpack: str, kind: Kind, release: str) -> Outlook:
    rtx = kind == "tensorrt-rtx"
    model, plugins, refusal = _plugins(seen, target, release, rtx=rtx)
    gone: tuple[str, ...] = ()
    if rtx:
        model, gone = seen.for_rtx
        by_body = [layer for layer in plugins if not set(gone).isdisjoint(layer.instead_of)]
        plugins = tuple(msgspec.structs.replace(p, how="function body") if p in by_body else p for p in plugins)
    operators = _operators(seen, model, release, rtx=rtx)
    problems = [_sentence(o, release, rtx=rtx) for o in operators if o.how in ("missing", "restricted")]
    doubts = [_sentence(o, release, rtx=rtx) for o in operators if o.how == "unsure"]
    notes: list[str] = [refusal] if refusal else []
    if gone:
        notes.append(f"TensorRT-RTX has no RoiAlign: the function of edgekit::roi_align stands for {', '.join(gone)}")
    _judge_precision(seen, target, release, rtx=rtx, problems=problems, notes=notes)
    if not rtx and seen.opset > _OPSETS.get(release, 99):
        notes.append(f"operator set {seen.opset}: TensorRT {release} is known to read up to {_OPSETS[release]}")
    memory = _memory_gb(seen, target)
    if memory is not None and target.memory_gb is not None and memory > target.memory_gb:
        problems.append(
            f"It needs about {memory:.1f} GB at the largest shapes and the target has {target.memory_gb:g}. "
            "Give smaller ones with --shapes."
        )
    parsed = False
    if rtx and available(MODULES["tensorrt-rtx"]):
        try:
            problems += seen.rtx_faults()
            parsed = True
        except EdgekitError as error:
            notes.append(str(error))
    verdict: Literal["works", "unsure", "breaks"] = "breaks" if problems else "unsure" if doubts else "works"
    return Outlook(
        target=target.name,
        sm=target.sm,
        variant=seen.variant.id,
        module=kind,
        jetpack=jetpack,
        release=release,
        verdict=verdict,
        problems=tuple(problems),
        notes=(*doubts, *notes),
        operators=tuple(operators),
        memory_gb=memory,
        have_gb=target.memory_gb,
        bound_ms=_bound_ms(seen, target),
        portability=_portability(target, release, rtx=rtx),
        parsed=parsed,
        plugins=plugins,
    )


def _plugins(
    seen: _Model, target: Target, release: str, *, rtx: bool
) -> tuple[onnx.ModelProto, tuple[PluginOutlook, ...], str]:
    """The graph that would be built, what plugins do in it, and a reason if they cannot be had at all."""
    if not seen.plugins:
        return seen.model, bodies(seen.model, why="--no-plugins"), ""
    made = seen.plugged(target.sm)
    if isinstance(made, str):
        return seen.model, bodies(seen.model, why=made), made
    if not rtx and at_least(release, AOT_PLUGINS):
        return made.model, made.layers, ""
    return seen.model, without(made.layers), ""


def _operators(seen: _Model, model: onnx.ModelProto, release: str, *, rtx: bool) -> list[OperatorOutlook]:
    found: dict[tuple[str, How, str], list[str]] = {}
    functions = {(f.domain, f.name) for f in model.functions}
    plugins = set(seen.variant.plugins)
    for graph in subgraphs(model.graph):
        for node in graph.node:
            name = node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"
            plugin = name in plugins or is_plugin(node)
            body = (node.domain, node.op_type) in functions
            how, why = _how(seen, node, name, release, rtx=rtx, plugin=plugin, body=body)
            where = module_of(node) or node.name
            found.setdefault((name, how, why), []).append(where)
    return [
        OperatorOutlook(
            operator=name,
            count=len(nodes),
            how=how,
            why=why,
            nodes=() if how in ("native", "function body", "plugin") else tuple(nodes[:5]),
        )
        for (name, how, why), nodes in sorted(found.items())
    ]


def _how(seen: _Model, node: Any, name: str, release: str, *, rtx: bool, plugin: bool, body: bool) -> tuple[How, str]:
    if plugin and not rtx and at_least(release, AOT_PLUGINS):
        return "plugin", ""
    if body:
        if rtx or at_least(release, FUNCTIONS):
            return "function body", ""
        return "missing", f"functions are expanded from TensorRT {FUNCTIONS} on"
    if node.domain not in STANDARD_DOMAINS:
        return "missing", "it is not a standard operator and the model brings no body for it"
    answer: Answer = operator_support(node.op_type, release, rtx=rtx)
    if answer == "no":
        return "missing", missing_reason(node.op_type, rtx=rtx)
    why = restriction(node, seen.constants)
    if why:
        return "restricted", why
    if node.op_type == "If" and _nested(node):
        return "unsure", "it holds another If, which TensorRT-RTX 1.7 parses and then cannot build"
    if answer == "unsure":
        return "unsure", f"it is known to be there from {first_release(name)} on"
    return "native", ""


def _nested(node: Any) -> bool:
    return any(inner.op_type == "If" for a in node.attribute for g in (a.g, *a.graphs) for inner in g.node)


def _sentence(o: OperatorOutlook, release: str, *, rtx: bool) -> str:
    where = f" (first in {', '.join(n for n in o.nodes[:3] if n)})" if any(o.nodes[:3]) else ""
    count = f"{o.count} {o.operator}" if o.count > 1 else o.operator
    module = "TensorRT-RTX" if rtx else f"TensorRT {release}"
    if o.how == "missing":
        return f"{module} has no {count}{where}: {o.why}."
    if o.how == "restricted":
        return f"{module} does not take {count}{where}: {o.why}."
    return f"{module} may lack {count}{where}: {o.why}."


def _judge_precision(
    seen: _Model, target: Target, release: str, *, rtx: bool, problems: list[str], notes: list[str]
) -> None:
    precision, chip = seen.variant.precision, target.architecture
    if not rtx and not at_least(release, STRONGLY_TYPED):
        problems.append(
            f"TensorRT {release} does not take the precision from the graph: use JetPack 6.1 or later (TensorRT 10.3)."
        )
    if chip.last and not at_least(chip.last, release):
        problems.append(f"TensorRT {release} no longer supports {chip.name}; the last one is {chip.last}.")
    elif not rtx and not at_least(release, chip.tensorrt):
        problems.append(f"TensorRT {release} does not know {chip.name}; {chip.tensorrt} is the first that does.")
    if precision == "bf16" and not chip.bf16:
        problems.append(f"{chip.name} has no bfloat16. Use the FP16 variant: edgekit quantize X.edge --precision fp16")
    if rtx and target.sm == 75:
        if precision == "fp32":
            problems.append(
                "TensorRT-RTX has no FP32 products on Turing. Use: edgekit quantize X.edge --precision fp16"
            )
        if precision.startswith("int8"):
            notes.append("TensorRT-RTX runs INT8 products in FP16 on Turing: the FP16 variant is the better one")
    if "float8" in seen.types and not chip.fp8_ops:
        problems.append(f"{chip.name} has no FP8.")
    if precision == "fp32" and not (rtx and target.sm == 75):
        notes.append("FP32 leaves most of this GPU's speed unused: edgekit quantize X.edge --precision fp16")


def _memory_gb(seen: _Model, target: Target) -> float | None:
    if seen.activation_bytes is None:
        return None
    others = OTHERS_GB.get(target.family, OTHERS_GB[""]) if target.sm not in (72, 87, 110) else OTHERS_GB["jetson"]
    return round((seen.weight_bytes + seen.activation_bytes) / 1e9 + others, 2)


def _bound_ms(seen: _Model, target: Target) -> float | None:
    rate = target.int8_tops if seen.variant.precision.startswith("int8") else target.fp16_tops
    if seen.flops is None or rate is None or target.bandwidth_gb_s is None or seen.variant.precision == "fp32":
        return None
    return max(seen.flops / (rate * 1e12), seen.weight_bytes / (target.bandwidth_gb_s * 1e9)) * 1e3


def _portability(target: Target, release: str, *, rtx: bool) -> str:
    if rtx:
        return f"{target.sm_name} GPUs with this release of TensorRT-RTX; kernels are finished on the GPU at first load"
    if target.family == "jetson" or target.sm in (72, 87, 110):
        return f"{target.sm_name} boards with TensorRT {release} of the same JetPack; best on the board it was built on"
    same = " (any of its compute capability with --hardware same)" if at_least(release, "10.9") else ""
    return f"the model of GPU that it was built on{same}, with TensorRT {release}; later ones with --version-compatible"


def _quantized_types(model: onnx.ModelProto) -> set[str]:
    return {"float8" for t in model.graph.initializer if 17 <= t.data_type <= 20}
