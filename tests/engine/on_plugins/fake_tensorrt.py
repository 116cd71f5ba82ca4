"""A `tensorrt` with the names of a recorded release that "builds": its engine is JSON of the nodes that were parsed.

As NVIDIA's parser, it makes a plugin of a node that has `plugin_namespace` and whose plugin is registered, and refuses
other nodes of domains that the model brings no function for.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

from tests.engine.fakes import recorded


def install(release: str) -> Any:
    """Put it where `import tensorrt` finds it."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = f"{release}.0"
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    for owner, attributes in recorded(release).items():
        setattr(trt, owner, type(owner, (), {name: i for i, name in enumerate(attributes)}))
    registered: set[str] = set()

    class ILogger:
        def __init__(self) -> None:
            pass

    class Network:
        def __init__(self, flags: int) -> None:
            self.flags, self.num_outputs, self.nodes = flags, 0, []

    class Builder:
        def __init__(self, _logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Any:
            return trt.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return types.SimpleNamespace(set_shape=lambda *_: None)

        def build_serialized_network(self, network: Network, _config: Any) -> bytes:
            wanted = getattr(trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS", 63)
            return json.dumps({"nodes": network.nodes, "ahead_of_time": bool(network.flags >> wanted & 1)}).encode()

    class Fault:
        def __init__(self, text: str) -> None:
            self.text = text

        def code(self) -> str:
            return "UNSUPPORTED_NODE"

        def desc(self) -> str:
            return self.text

        def node(self) -> int:
            return 0

    class OnnxParser:
        def __init__(self, network: Network, _logger: Any) -> None:
            self.network, self.faults = network, []

        @property
        def num_errors(self) -> int:
            return len(self.faults)

        def get_error(self, index: int) -> Fault:
            return Fault(self.faults[index])

        def parse_from_file(self, path: str) -> bool:
            import onnx

            model = onnx.load(path)
            functions = {(f.domain, f.name) for f in model.functions}
            for node in model.graph.node:
                names = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                plugin = f"{names.get('plugin_namespace', b'').decode()}::{node.op_type}"
                if (node.domain, node.op_type) in functions or node.domain == "":
                    self.network.nodes.append(node.op_type)
                elif plugin in registered and names.get("aot") == 1:
                    self.network.nodes.append(plugin)
                else:
                    self.faults.append(f"no importer for {node.op_type}")
            self.network.num_outputs = len(model.graph.output)
            return not self.faults

    class Runtime:
        def __init__(self, _logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, _data: bytes) -> None:
            return None

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, OnnxParser, Runtime
    trt.IBuilderConfig.add_optimization_profile = lambda self, profile: 0
    trt.IBuilderConfig.create_timing_cache = lambda self, data: None
    trt.IBuilderConfig.set_timing_cache = lambda self, kept, ignore: True
    trt.IBuilderConfig.get_timing_cache = lambda self: None
    trt.IBuilderConfig.set_flag = lambda self, flag: None
    trt.IProgressMonitor = type("IProgressMonitor", (), {})
    if hasattr(trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS"):
        _quick_plugins(trt, registered)
    sys.modules["tensorrt"] = trt
    return trt


def _quick_plugins(trt: Any, registered: set[str]) -> None:
    """`tensorrt.plugin`, as far as registering goes: a plugin counts once all three of its parts are there."""
    trtp: Any = types.ModuleType("tensorrt.plugin")
    parts: dict[str, set[str]] = {}
    trtp.op = types.SimpleNamespace()
    for name in ("TensorDesc", "AutoTuneCombination", "KernelLaunchParams", "SymExprs"):
        setattr(trtp, name, type(name, (), {}))

    def part(word: str) -> Any:
        def named(plugin: str) -> Any:
            def take(function: Any) -> Any:
                parts.setdefault(plugin, set()).add(word)
                if parts[plugin] == {"register", "autotune", "aot_impl"}:
                    registered.add(plugin)
                return function

            return take

        return named

    for word in ("register", "autotune", "aot_impl"):
        setattr(trtp, word, part(word))
    trt.QuickPluginCreationRequest = type("QuickPluginCreationRequest", (), {})
    trt.plugin = sys.modules["tensorrt.plugin"] = trtp


if __name__ == "__main__":
    install(sys.argv[1])
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from edgekit.cli.main import main

    sys.exit(main(sys.argv[2:]))
