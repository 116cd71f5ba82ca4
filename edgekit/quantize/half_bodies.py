"""16 bits inside the bodies of If: each is converted by itself, and what it takes and gives stays float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require

if TYPE_CHECKING:
    import onnx

_FLOAT = 1


@dataclass(frozen=True)
class Conversion:
    """What is converted and how.

    Attributes:
        types: element type of each tensor, of the bodies too.
        to: the 16-bit type's number in ONNX.
        can: whether a node may be converted.
        takes: whether input number i of a node follows the node's type.
        fresh: a name that the model has not yet, close to the one given.
    """

    types: Mapping[str, int]
    to: int
    can: Callable[[Any], bool]
    takes: Callable[[Any, int], bool]
    fresh: Callable[[str], str]


def halve_bodies(graph: onnx.GraphProto, how: Conversion) -> None:
    """Convert the nodes in the bodies of the If nodes of `graph`, in place.

    Loop and Scan keep their types: what they carry round must stay what it was.
    """
    for node in graph.node:
        if node.op_type != "If":
            continue
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _Body(attribute.g, how).convert()


class _Body:
    def __init__(self, body: onnx.GraphProto, how: Conversion) -> None:
        self._body, self._how = body, how
        self._half: dict[str, str] = {}
        self._nodes: list[Any] = []

    def convert(self) -> None:
        halve_bodies(self._body, self._how)
        own, how = list(self._body.node), self._how
        chosen = [how.can(n) and any(how.types.get(o) == _FLOAT for o in n.output) for n in own]
        whole = {v.name for v in self._body.output} | _captured(own)  # read as float32
        for node, half in zip(own, chosen):
            whole |= {name for i, name in enumerate(node.input) if not (half and how.takes(node, i))}
        for node, half in zip(own, chosen):
            if half:
                self._convert(node, whole)
            else:
                self._nodes.append(node)
        del self._body.node[:]
        self._body.node.extend(self._nodes)

    def _convert(self, node: Any, whole: set[str]) -> None:
        types = self._how.types
        for i, name in enumerate(node.input):
            if types.get(name) == _FLOAT and self._how.takes(node, i):
                if name not in self._half:
                    self._half[name] = self._how.fresh(f"{name}_half")
                    self._cast(name, self._half[name], self._how.to)
                node.input[i] = self._half[name]
        self._nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) != _FLOAT:
                continue
            self._half[name] = node.output[i] = self._how.fresh(f"{name}_half")
            if name in whole:
                self._cast(node.output[i], name, _FLOAT)

    def _cast(self, source: str, result: str, to: int) -> None:
        onnx = require("onnx", why="convert models to 16 bits")
        self._nodes.append(onnx.helper.make_node("Cast", [source], [result], name=self._how.fresh("Cast"), to=to))


def _captured(nodes: list[Any]) -> set[str]:
    """Every name that the bodies of `nodes` read or hand on."""
    out: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                out |= {name for n in graph.node for name in n.input} | {v.name for v in graph.output}
                out |= _captured(list(graph.node))
    return out
