"""Which layers of a variant's graph run as CUDA plugins (`plugins_trt`) on a target, and which do not, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgekit.engine.operators import AOT_PLUGINS
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import TrtModule
from edgekit.errors import BackendError
from edgekit.gpu import this_gpu

if TYPE_CHECKING:
    import onnx

DOMAIN = "edgekit"
"""The ONNX domain of the plugins' operators, and the namespace of the plugins."""

How = Literal["plugin", "function body", "as it is"]


class PluginOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """One layer that a plugin could stand for.

    Attributes:
        operator: "edgekit::lstm".
        node: of the graph that is built.
        how: "plugin"; "function body" for a node of the domain `edgekit` that is no plugin here; "as it is" for
            standard nodes that are recognised and stay.
        instead_of: names of the standard nodes that the plugin replaces; empty where the model has the node itself.
        why: the reason, where it is no plugin.
    """

    operator: str
    node: str
    how: How
    instead_of: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Plugged:
    """A variant's graph for one compute capability, with its plugins."""

    model: onnx.ModelProto
    layers: tuple[PluginOutlook, ...]
    digests: dict[str, str]
    """SHA-256 of the sources of each operator that is in use, by "edgekit::NAME"."""

    @property
    def kept(self) -> tuple[PluginOutlook, ...]:
        """The layers that are no plugins."""
        return tuple(layer for layer in self.layers if layer.how != "plugin")


def plugged(model: onnx.ModelProto, *, sm: int, fuse: bool = True, compiles: bool = True) -> Plugged:
    """`model` for TensorRT 10.9 or later on compute capability `sm`, with plugin nodes where kernels can do the work:
    for the operators that it has, and (`fuse`) for standard nodes that compute the same.

    Without `compiles` kernels are judged by their sizes alone, which takes no compiler.

    Raises:
        BackendError: no kernel can be compiled here or for this target, or a third party's operator is broken.
    """
    from plugins_trt.errors import PluginError
    from plugins_trt.nodes import with_plugins
    from plugins_trt.registry import operators

    try:
        made = with_plugins(model, operators(), sm=sm, fuse=fuse, compiles=compiles)
    except PluginError as error:
        raise BackendError(str(error)) from error
    replaced = {fusion.node: fusion.nodes for fusion in made.fusions}
    layers = [
        PluginOutlook(
            operator=f"{DOMAIN}::{use.operator}",
            node=use.node,
            how="plugin",
            instead_of=replaced.get(use.node, ()),
        )
        for use in made.used
    ]
    kinds: tuple[tuple[How, Any], ...] = (("function body", made.refused), ("as it is", made.left))
    layers += [
        PluginOutlook(operator=f"{DOMAIN}::{one.operator}", node=one.node, how=how, why=one.reason.removesuffix("."))
        for how, found in kinds
        for one in found
    ]
    return Plugged(made.model, tuple(layers), made.digests)


def with_stand_ins(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`model` for TensorRT-RTX, which has no RoiAlign: each that `roi_align` can do becomes that operator's function.

    Returns the model and the nodes that are gone. Functions take operator set 18.
    """
    if not any(node.op_type == "RoiAlign" for node in model.graph.node):
        return model, ()
    from plugins_trt.fuse import fused
    from plugins_trt.registry import operators

    made, fusions = fused(model, [operators()["roi_align"]])
    return (made, tuple(name for fusion in fusions for name in fusion.nodes)) if fusions else (model, ())


def bodies(model: onnx.ModelProto, *, why: str) -> tuple[PluginOutlook, ...]:
    """The nodes of the domain `edgekit` in a model of which none becomes a plugin."""
    return tuple(
        PluginOutlook(operator=f"{DOMAIN}::{node.op_type}", node=node.name, how="function body", why=why)
        for node in model.graph.node
        if node.domain == DOMAIN
    )


def without(layers: tuple[PluginOutlook, ...]) -> tuple[PluginOutlook, ...]:
    """What becomes of `layers` with a TensorRT that has no plugins compiled ahead of time."""
    why = f"plugins take TensorRT {AOT_PLUGINS} or later, and not TensorRT-RTX"
    return tuple(
        msgspec.structs.replace(layer, how="as it is" if layer.instead_of else "function body", why=why)
        if layer.how == "plugin"
        else layer
        for layer in layers
    )


def is_plugin(node: Any) -> bool:
    """Whether a node of a graph that `plugged` made is a plugin."""
    return node.domain == DOMAIN and any(a.name == "plugin_namespace" for a in node.attribute)


def sm_of(target_sm: int, options: BuildOptions) -> int:
    """The compute capability that kernels are compiled for: the oldest that the engine is to run on."""
    return min(80, target_sm) if options.hardware == "ampere+" else target_sm


def plugged_for(
    model: onnx.ModelProto,
    module: TrtModule,
    *,
    sm: int,
    options: BuildOptions,
    note: Callable[[str], None] = lambda _text: None,
) -> Plugged | None:
    """The graph that `module` builds of `model` with plugins, or None if there are to be none; `note` hears why, where
    there is something that could be one."""
    if not (options.plugins and module.has_quick_plugins):
        return None
    fuse = not (options.refit or options.strip)
    sm = sm_of(sm, options)
    try:
        wanted = plugged(model, sm=sm, fuse=fuse, compiles=False)
        if not wanted.layers:
            return None
        _check_driver()
        made = plugged(model, sm=sm, fuse=fuse)
    except BackendError as error:
        note(f"no layer becomes a plugin: {error}")
        return None
    for layer in made.kept:
        note(f"{layer.node} {KEEPS[layer.how]}: {layer.why}")
    return made if made.digests else None


KEEPS = {"function body": "keeps its function body", "as it is": "stays as it is"}


def register(module: TrtModule, *, sm: int) -> None:
    """Tell TensorRT's Python module about every operator, so that its parser finds the plugins.

    Raises:
        BackendError: this release has no plugins compiled ahead of time.
    """
    from plugins_trt import quick
    from plugins_trt.errors import PluginError
    from plugins_trt.registry import operators

    try:
        quick.register(module.trt, operators().values(), sm=sm)
    except PluginError as error:
        raise BackendError(str(error)) from error


def _check_driver() -> None:
    """Raise BackendError if this machine's driver, where there is one, cannot read what NVRTC compiles."""
    from plugins_trt import quick
    from plugins_trt.errors import PluginError

    if this_gpu() is None:
        return
    try:
        quick.this_gpu()
    except PluginError as error:
        raise BackendError(str(error)) from error
