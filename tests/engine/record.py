"""Prints the classes of a `tensorrt` extension module with their attributes: how tests/engine/attributes/ was made.

`python tests/engine/record.py tensorrt_bindings/tensorrt.so` with the file from an unpacked `tensorrt-cu1x-bindings`
wheel of the running Python's version; it needs a C compiler and the TensorRT-RTX wheels, whose libraries stand in for
those that the module was linked with. Nothing is called, only listed.
"""

from __future__ import annotations

import sys

from tests.engine.bindings import load_bindings

CLASSES = tuple(
    """
Builder BuilderFlag ComputeCapability DataType DeviceType EngineInspector EngineStat HardwareCompatibilityLevel
IBuilderConfig ICudaEngine IExecutionContext IHostMemory ILogger INetworkDefinition IOptimizationProfile
IProgressMonitor ITimingCache LayerInformationFormat MemoryPoolType NetworkDefinitionCreationFlag OnnxParser
OnnxParserFlag ParserError PreviewFeature ProfilingVerbosity Runtime SerializationFlag TensorIOMode
""".split()  # noqa: SIM905
)


def listing(module: object) -> list[str]:
    """The lines of an attribute file, without its heading."""
    lines = []
    for name in CLASSES:
        owner = getattr(module, name, None)
        if owner is None:
            continue
        lines.append(name)
        members = getattr(owner, "__members__", None)
        names = members if members is not None else (a for a in dir(owner) if not a.startswith("_"))
        lines += [f"{name}.{a}" for a in sorted(names)]
    return lines


if __name__ == "__main__":
    print("\n".join(listing(load_bindings(sys.argv[1]))))
