"""Gives a graph with plugins to NVIDIA's own ONNX parser and prints, as JSON, what it says about it.

`python -m tests.engine.on_plugins.parse MODEL.onnx`, in a process of its own. The parser is that of TensorRT-RTX under
the real `tensorrt` bindings: it looks plugins up as every TensorRT does, and then has no layer for them.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import onnx

from edgekit.engine.options import BuildOptions
from edgekit.engine.plugins import plugged_for, register
from edgekit.engine.trt_module import TrtModule
from tests.plugins_trt.nvidia import load_tensorrt


def main(path: Path) -> None:
    trt = load_tensorrt()
    trt.__version__ = importlib.metadata.version("tensorrt-cu13-bindings")
    module = TrtModule(trt, "tensorrt")
    notes: list[str] = []
    made = plugged_for(onnx.load(path), module, sm=110, options=BuildOptions(), note=notes.append)
    assert made is not None, notes
    register(module, sm=110)
    seen: list[str] = []
    logger = module.logger(lambda _level, text: seen.append(text), verbose=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plugged.onnx"
        onnx.save(made.model, file)
        network = trt.Builder(logger).create_network(module.network_flags())
        trt.OnnxParser(network, logger).parse_from_file(str(file))
    lines = [text for text in seen if "plugin" in text.lower()]
    print(json.dumps({"quick": module.has_quick_plugins, "digests": made.digests, "said": lines, "notes": notes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
