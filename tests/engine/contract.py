"""Runs edgekit's TensorRT code against NVIDIA's real `tensorrt` bindings, over the libraries of TensorRT-RTX.

`python tests/engine/contract.py MODEL.onnx`, in a process of its own: the bindings cannot be loaded beside
TensorRT-RTX's. A model is parsed, every option is set and read back, and an engine is built: each call exists and
takes our arguments.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgekit.engine.build import build_engine
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import Range
from edgekit.engine.trt_module import TrtModule
from tests.engine.bindings import load_bindings


def main(model: Path) -> None:
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    trt = load_bindings(Path(spec.origin).with_name("tensorrt.so"))
    trt.__version__ = importlib.metadata.version("tensorrt-cu13-bindings")
    module = TrtModule(trt, "tensorrt")
    seen: list[tuple[int, str]] = []
    logger = module.logger(lambda level, text: seen.append((level, text)), verbose=True)
    builder, network, faults = module.parsed(str(model), logger)
    assert not faults
    assert network.num_layers > 3
    options = BuildOptions(
        profiles=({"x": Range(min=(1, 3, 12, 12), opt=(4, 3, 12, 12), max=(8, 3, 12, 12))},),
        workspace_mb=64,
        level=2,
        hardware="same",
        refit=True,
        strip=True,
        sparsity=True,
        verbosity="names",
    )
    config = module.config(builder, options, sm=90)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64_000_000
    assert config.builder_optimization_level == 2
    assert config.num_optimization_profiles == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    for flag in ("REFIT", "STRIP_PLAN", "SPARSE_WEIGHTS", "EDITABLE_TIMING_CACHE"):
        assert config.get_flag(getattr(trt.BuilderFlag, flag)), flag
    steps: list[tuple[str, int, int]] = []
    module.set_progress(config, lambda *step: not steps.append(step))
    config.progress_monitor.phase_start("a", None, 2)
    assert config.progress_monitor.step_complete("a", 0)
    assert steps == [("a", 1, 2)]
    module.load_timing_cache(config, b"")
    assert module.engine(b"not an engine", logger) is None
    broken = model.with_name("broken.onnx")
    broken.write_bytes(b"not onnx")
    _, _, faults = module.parsed(str(broken), logger)
    assert faults
    assert faults[0].code
    steps.clear()
    built = build_engine(
        model,
        module=module,
        sm=90,
        options=BuildOptions(profiles=options.profiles),
        on_step=lambda step: steps.append((step.phase, step.done, step.total)),
    )
    assert len(built.data) > 10_000
    assert len(steps) > 5
    assert built.timing_cache  # what a first build learned is taken by the second
    again = build_engine(
        model,
        module=module,
        sm=90,
        options=BuildOptions(profiles=options.profiles),
        timing_cache=built.timing_cache,
    )
    assert again.timing_cache
    plain = BuildOptions(profiles=options.profiles, timing_cache=False)
    assert build_engine(model, module=module, sm=90, options=plain).timing_cache is None
    print("contract held by", module.title)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
