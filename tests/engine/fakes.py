"""Plain modules built from the attribute names recorded of real TensorRT releases (see attributes/)."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from edgekit.engine.trt_module import Kind, TrtModule

ATTRIBUTES = Path(__file__).with_name("attributes")
RELEASES = ("10.3", "10.13", "10.16", "11.4")


def recorded(release: str) -> dict[str, list[str]]:
    """Class -> its attributes in that release."""
    out: dict[str, list[str]] = {}
    for line in (ATTRIBUTES / f"{release}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        owner, _, attribute = line.partition(".")
        out.setdefault(owner, [])
        if attribute:
            out[owner].append(attribute)
    return out


def fake_module(release: str, *, kind: Kind = "tensorrt") -> TrtModule:
    """A module with exactly the names of that release; enumeration members are their position in it."""
    module: Any = types.ModuleType("tensorrt")
    module.__version__ = f"{release}.0"
    for owner, attributes in recorded(release).items():
        setattr(module, owner, type(owner, (), {name: i for i, name in enumerate(attributes)}))
    return TrtModule(module, kind)
