"""On a real GPU: skipped by name elsewhere; EDGEKIT_REQUIRE=gpu makes a skip a failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit._lazy import available
from edgekit.engine.build import build_engine
from edgekit.engine.options import BuildOptions
from edgekit.engine.profiles import Range
from edgekit.engine.trt_module import Kind, load
from edgekit.errors import InputError
from edgekit.gpu import this_gpu
from edgekit.runtime.ort import OrtSession
from edgekit.runtime.trt import TrtSession
from tests.tiny import WEIGHT, tiny_model

pytestmark = pytest.mark.gpu


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_bytes_and_graphs_on_the_gpu() -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install cuda-bindings")
    from edgekit.runtime.cuda import Gpu

    with Gpu() as gpu:
        size = 1 << 20
        stream = gpu.stream()
        host, back, memory = gpu.host_memory(size), gpu.host_memory(size), gpu.device_memory(size)

        def there_and_back() -> None:
            stream.to_device(memory.address, host.address, size)
            stream.to_host(back.address, memory.address, size)

        graph = gpu.graph(stream, there_and_back)
        for seed in range(3):
            host.array("uint8", (size,))[:] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
            graph.launch(stream)
            stream.synchronize()
            np.testing.assert_array_equal(back.array("uint8", (size,)), host.array("uint8", (size,)))


@pytest.mark.parametrize("graphs", [False, True])
def test_onnxruntime_on_the_gpu_gives_the_cpus_answers(graphs: bool) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu: pip install 'edgekit[gpu]'")
    with OrtSession(tiny_model().SerializeToString(), device="cuda:0", graphs=graphs) as session:
        for count in (1, 5, 1, 5, 1):
            x = rows(count, seed=count)
            np.testing.assert_allclose(session.run({"x": x})["scores"], x @ WEIGHT, atol=1e-2)


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_gives_the_cpus_answers(kind: Kind, tmp_path: Path) -> None:
    if not available("tensorrt" if kind == "tensorrt" else "tensorrt_rtx_bindings"):
        pytest.skip(f"needs {kind}")
    gpu, module = this_gpu(), load(kind)
    assert gpu is not None
    if module.cross_compiles and gpu.sm not in module.capabilities():
        pytest.skip(f"{module.title} does not compile for sm_{gpu.sm}")
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_model().SerializeToString())
    shapes = {"x": Range(min=(1, 4), opt=(4, 4), max=(8, 4))}
    built = build_engine(model, module=module, sm=gpu.sm, options=BuildOptions(profiles=(shapes,)))
    with TrtSession(built.data, kind=kind) as session:
        feeds = [{"x": rows(n, seed=i)} for i, n in enumerate((1, 8, 1, 8, 1, 8, 3))]
        for feed, got in zip(feeds, session.run_many(feeds)):
            np.testing.assert_allclose(got["scores"], feed["x"] @ WEIGHT, atol=1e-2)
        with pytest.raises(InputError, match=r"accepts \(1\.\.8,4\)"):
            session.run({"x": rows(9)})
