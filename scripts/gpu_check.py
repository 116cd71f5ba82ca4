"""Every check of edgekit that needs an NVIDIA GPU, in one run; the figures go to benchmarks/results/gpu-NAME.json.

    PYTHONPATH=. python scripts/gpu_check.py [--seconds 2] [--out FILE.json] [--only cuda,nvml]

A check that cannot run here (a wheel is missing, the GPU is refused) is null with the reason, in the words of whoever
refused. Exits 1 if a check failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import platform
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from edgekit._lazy import available
from edgekit.bench.stats import latency_of
from edgekit.errors import BackendError, EdgekitError, MissingDependencyError
from edgekit.gpu import this_gpu

ROOT = Path(__file__).resolve().parent.parent

BATCH = 8
SESSION_LIMIT = 1.03
"""Our session may take this many times as long as a bare IO-binding loop."""
OVERLAP_FLOOR = 0.95
"""Throughput with copies, as a share of compute alone."""


class NotHereError(Exception):
    """A check cannot run on this machine; the text says why."""


def resnet50(path: Path, *, half: bool) -> None:
    """ResNet-50 with random weights, free batch, 3 x 224 x 224: its shape is what is measured, not its answers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dtype, kind = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    rng = np.random.default_rng(0)
    nodes, weights, count = [], [], iter(range(10_000))

    def conv(x: str, cin: int, cout: int, k: int, stride: int, *, relu: bool = True) -> str:
        w, b, y = (f"{n}{next(count)}" for n in "wby")
        scale = np.sqrt(2 / (cin * k * k)) * (1 if relu else 0.3)  # keeps the residuals small enough for FP16
        weights.append(numpy_helper.from_array((rng.standard_normal((cout, cin, k, k)) * scale).astype(dtype), w))
        weights.append(numpy_helper.from_array(np.zeros(cout, dtype), b))
        pads = [k // 2] * 4
        nodes.append(helper.make_node("Conv", [x, w, b], [y], kernel_shape=[k, k], strides=[stride] * 2, pads=pads))
        return op("Relu", [y]) if relu else y

    def op(name: str, inputs: list[str], **attributes: Any) -> str:
        y = f"y{next(count)}"
        nodes.append(helper.make_node(name, inputs, [y], **attributes))
        return y

    x = conv("x", 3, 64, 7, 2)
    x = op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    cin = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            step = stride if i == 0 else 1
            y = conv(conv(x, cin, width, 1, 1), width, width, 3, step)
            y = conv(y, width, 4 * width, 1, 1, relu=False)
            x = op("Relu", [op("Add", [y, conv(x, cin, 4 * width, 1, step, relu=False) if i == 0 else x])])
            cin = 4 * width
    x = op("Flatten", [op("GlobalAveragePool", [x])])
    weights.append(numpy_helper.from_array((rng.standard_normal((2048, 1000)) * 0.02).astype(dtype), "fc"))
    nodes.append(helper.make_node("MatMul", [x, "fc"], ["scores"]))
    inputs = [helper.make_tensor_value_info("x", kind, ["batch", 3, 224, 224])]
    outputs = [helper.make_tensor_value_info("scores", kind, ["batch", 1000])]
    graph = helper.make_graph(nodes, "resnet50", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def images(batch: int, *, half: bool) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 3, 224, 224)).astype(np.float16 if half else np.float32)


def per_call(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, for about `seconds` after a warm-up."""
    for _ in range(10):
        call()
    out: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(out) < 30:
        start = time.perf_counter()
        call()
        out.append(time.perf_counter() - start)
    return out


def latency(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    found = latency_of(per_call(call, seconds))
    return {"calls": found.calls, "p50_ms": 1000 * found.p50_s, "p99_ms": 1000 * found.p99_s}


def alike(got: np.ndarray, want: np.ndarray) -> float:
    """Cosine of two outputs."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def check_cuda(seconds: float, folder: Path) -> dict[str, Any]:
    """Copies in and out: exact, at what rate, and whether two streams overlap; the cost of a graph's launch."""
    if not available("cuda.bindings"):
        raise NotHereError("cuda-bindings is not installed")
    from edgekit.runtime.cuda import Gpu

    size = 1 << 26
    with Gpu() as gpu:
        a, b = gpu.stream(), gpu.stream()
        source, sink = gpu.host_memory(size), gpu.host_memory(size)
        there, back = gpu.device_memory(size), gpu.device_memory(size)
        source.array("uint8", (size,))[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)

        def copies(into: Any, out: Any, rounds: int = 10) -> float:
            start = time.perf_counter()
            for _ in range(rounds):
                into.to_device(there.address, source.address, size)
                out.to_host(sink.address, back.address, size)
            into.synchronize()
            out.synchronize()
            return (time.perf_counter() - start) / rounds

        copies(a, a)
        one, two = min(copies(a, a) for _ in range(5)), min(copies(a, b) for _ in range(5))
        a.to_host(sink.address, there.address, size)
        a.synchronize()
        exact = bool(np.array_equal(source.array("uint8", (size,)), sink.array("uint8", (size,))))
        graph = gpu.graph(a, lambda: a.to_device(there.address, source.address, 256))

        def launch() -> None:
            graph.launch(a)
            a.synchronize()

        graph_us = 1e6 * statistics.median(per_call(launch, min(seconds, 1)))
        figures = {
            "gpu": gpu.name,
            "sm": gpu.sm,
            "integrated": gpu.integrated,
            "memory_gb": gpu.memory()[1] / 1e9,
            "copies_exact": exact,
            "in_and_out_one_stream_gb_s": 2 * size / one / 1e9,
            "in_and_out_two_streams_gb_s": 2 * size / two / 1e9,
            "two_streams_speed_up": one / two,
            "graph_launch_and_wait_us": graph_us,
        }
    return {"ok": exact, **figures}


def check_onnxruntime(seconds: float, folder: Path) -> dict[str, Any]:
    """ONNX Runtime with CUDA through our session, beside a bare IO-binding loop; latency with and without graphs."""
    if not (available("onnxruntime") and available("onnx")):
        raise NotHereError("onnxruntime-gpu or onnx is not installed")
    import onnxruntime as ort

    from edgekit.runtime.ort import OrtSession

    model = folder / "resnet50.onnx"
    resnet50(model, half=False)
    x = images(BATCH, half=False)
    with OrtSession(model) as cpu:
        want = cpu.run({"x": x[:1]})["scores"]
    with OrtSession(model, device="cuda:0") as session:
        cosine = alike(session.run({"x": x[:1]})["scores"], want)
        bare = ort.InferenceSession(str(model), providers=[("CUDAExecutionProvider", {"device_id": "0"})])
        binding = bare.io_binding()
        value = ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
        scores = ort.OrtValue.ortvalue_from_shape_and_type([BATCH, 1000], np.float32, "cuda", 0)
        binding.bind_ortvalue_input("x", value)
        binding.bind_ortvalue_output("scores", scores)

        def loop() -> None:
            value.update_inplace(x)
            bare.run_with_iobinding(binding)
            scores.numpy()

        rounds = []
        for _ in range(5):  # by turns, so that both see the same clocks
            ours = statistics.median(per_call(lambda: session.run({"x": x}), seconds / 5))
            rounds.append(ours / statistics.median(per_call(loop, seconds / 5)))
        compute_s = statistics.median(per_call(lambda: bare.run_with_iobinding(binding), seconds))
        two_s = threads_s(lambda: session.run({"x": x}), seconds)
        plain = latency(lambda: session.run({"x": x[:1]}), seconds)
    with OrtSession(model, device="cuda:0", graphs=True) as session:
        graphs = latency(lambda: session.run({"x": x[:1]}), seconds)
        graphs_cosine = alike(session.run({"x": x[:1]})["scores"], want)
    ratio = statistics.median(rounds)
    return {
        "ok": ratio <= SESSION_LIMIT and min(cosine, graphs_cosine) > 0.999,
        "onnxruntime": ort.__version__,
        "model": f"ResNet-50 FP32, batch {BATCH}",
        "session_over_bare_loop": ratio,
        "session_over_bare_loop_rounds": rounds,
        "compute_alone_ms": 1000 * compute_s,
        "two_threads_share_of_compute_alone": compute_s / two_s,
        "cosine_to_cpu": cosine,
        "cosine_to_cpu_with_graphs": graphs_cosine,
        "batch_1": plain,
        "batch_1_with_graphs": graphs,
    }


def threads_s(call: Callable[[], Any], seconds: float, threads: int = 2) -> float:
    """Seconds per call while `threads` threads call at once."""
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(i: int) -> None:
        while time.perf_counter() < end:
            call()
            counts[i] += 1

    start = time.perf_counter()
    running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    return (time.perf_counter() - start) / max(1, sum(counts))


def check_engine(kind: str, seconds: float, folder: Path) -> dict[str, Any]:
    """An FP16 engine of ResNet-50: right answers, overlap of copies and compute, latency with and without graphs."""
    from edgekit.engine.build import build_engine
    from edgekit.engine.options import BuildOptions
    from edgekit.engine.profiles import Range
    from edgekit.engine.trt_module import load
    from edgekit.runtime.trt import TrtSession

    gpu = this_gpu()
    assert gpu is not None
    module = load("tensorrt-rtx" if kind == "tensorrt-rtx" else "tensorrt")
    model = folder / "resnet50-fp16.onnx"
    resnet50(model, half=True)
    shapes = {"x": Range(min=(1, 3, 224, 224), opt=(BATCH, 3, 224, 224), max=(32, 3, 224, 224))}
    able = module.capabilities() or (gpu.sm,)
    sm = max((c for c in able if c <= gpu.sm), default=able[0])  # not this GPU's: its runtime says what it thinks of it
    built = build_engine(model, module=module, sm=sm, options=BuildOptions(profiles=(shapes,)))
    x = images(BATCH, half=True)
    figures: dict[str, Any] = {"module": module.title, "model": f"ResNet-50 FP16, batch {BATCH}"}
    figures |= {"build_s": built.build_s, "built_for_sm": sm}
    try:
        opened = TrtSession(built.data, kind=kind, graphs=True, slots=2)
    except BackendError as error:
        if sm == gpu.sm:
            raise
        raise NotHereError(f"{module.title}, which does not compile for sm_{gpu.sm}: {error}") from error
    with opened as session:
        got = session.run({"x": x})["scores"]
        compute_s = min(session.compute_s({"x": x}, repeats=100) for _ in range(3))
        count = max(50, int(seconds / compute_s))
        list(session.run_many({"x": x} for _ in range(20)))
        start = time.perf_counter()
        for _ in session.run_many({"x": x} for _ in range(count)):
            pass
        whole_s = (time.perf_counter() - start) / count
        figures["batch_1_with_graphs"] = latency(lambda: session.run({"x": x[:1]}), seconds)
    with TrtSession(built.data, kind=kind, graphs=False, slots=1) as session:
        figures["batch_1"] = latency(lambda: session.run({"x": x[:1]}), seconds)
        figures["one_slot_share_of_compute_alone"] = compute_s / statistics.median(
            per_call(lambda: session.run({"x": x}), seconds)
        )
    figures["cosine_to_cpu"] = cosine = _cosine_to_cpu(folder, got, x)
    figures["compute_alone_ms"] = 1000 * compute_s
    figures["overlapped_share_of_compute_alone"] = share = compute_s / whole_s
    return {"ok": share >= OVERLAP_FLOOR and (cosine is None or cosine > 0.999), **figures}


def _cosine_to_cpu(folder: Path, got: np.ndarray, x: np.ndarray) -> float | None:
    if not available("onnxruntime"):
        return None
    from edgekit.runtime.ort import OrtSession

    model = folder / "reference.onnx"
    resnet50(model, half=False)
    with OrtSession(model) as cpu:
        return alike(got[:1], cpu.run({"x": x[:1].astype(np.float32)})["scores"])


def check_nvml(seconds: float, folder: Path) -> dict[str, Any]:
    """How often the energy counter and the power reading change, and which power and energy fields there are."""
    if not available("pynvml"):
        raise NotHereError("nvidia-ml-py is not installed")
    import pynvml as nvml

    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    reads = {
        "energy": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
    }
    figures: dict[str, Any] = {"driver": str(nvml.nvmlSystemGetDriverVersion())}
    for name, read in reads.items():
        try:
            figures[f"{name}_period_ms"] = _period_ms(read, max(2.0, seconds))
        except nvml.NVMLError as error:
            figures[f"{name}_period_ms"], figures[f"{name}_reason"] = None, str(error)
    names = [n for n in dir(nvml) if n.startswith("NVML_FI_DEV_") and re.search("POWER|ENERGY", n)]
    fields = {}
    for name in names:
        try:
            (value,) = nvml.nvmlDeviceGetFieldValues(handle, [getattr(nvml, name)])
        except nvml.NVMLError as error:
            fields[name] = str(error)
            continue
        fields[name] = "there" if value.nvmlReturn == 0 else str(nvml.NVMLError(value.nvmlReturn))
    return {"ok": figures["energy_period_ms"] is not None, **figures, "fields": fields}


def check_energy(seconds: float, folder: Path) -> dict[str, Any]:
    """Joules per inference by the energy counter and by power readings, which must agree."""
    from scripts.gpu_energy import check_energy as check

    return check(seconds, folder)


def _period_ms(read: Callable[[], int], seconds: float) -> float | None:
    """Median time between changes of a reading; None if it did not change."""
    changes, last = [], read()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        value = read()
        if value != last:
            changes.append(time.perf_counter())
            last = value
    gaps = [b - a for a, b in itertools.pairwise(changes)]
    return 1000 * statistics.median(gaps) if gaps else None


CHECKS: dict[str, Callable[[float, Path], dict[str, Any]]] = {
    "cuda": check_cuda,
    "onnxruntime": check_onnxruntime,
    "tensorrt": lambda seconds, folder: check_engine("tensorrt", seconds, folder),
    "tensorrt_rtx": lambda seconds, folder: check_engine("tensorrt-rtx", seconds, folder),
    "nvml": check_nvml,
    "energy": check_energy,
    "plugins": lambda seconds, folder: importlib.import_module("scripts.gpu_plugins").check_plugins(seconds),
}


def run(name: str, seconds: float) -> dict[str, Any]:
    """One check; `ok` is None with a reason where it could not be made."""
    with tempfile.TemporaryDirectory(prefix="edgekit-gpu-") as folder:
        try:
            return CHECKS[name](seconds, Path(folder))
        except (NotHereError, MissingDependencyError) as error:
            return {"ok": None, "reason": str(error)}
        except EdgekitError as error:
            return {"ok": False, "reason": str(error)}
        except Exception as error:  # the other checks go on; this one failed
            return {"ok": False, "reason": f"{type(error).__name__}: {error}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured (default 2)")
    parser.add_argument("--out", type=Path, help="where the figures go (default benchmarks/results/gpu-NAME.json)")
    parser.add_argument("--only", default=",".join(CHECKS), help="checks to run, separated by commas")
    args = parser.parse_args()
    gpu = this_gpu()
    if gpu is None:
        print("No NVIDIA GPU with its driver is found here, so nothing can be checked.", file=sys.stderr)
        return 2
    wanted = args.only.split(",")
    unknown = [n for n in wanted if n not in CHECKS]
    if unknown:
        print(f"There is no check '{unknown[0]}'; there are {', '.join(CHECKS)}.", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"gpu": gpu.name, "sm": gpu.sm, "date": date.today().isoformat()}
    result |= {"python": platform.python_version(), "machine": platform.machine(), "checks": {}}
    for name in wanted:
        print(f"{name} …", file=sys.stderr, flush=True)
        result["checks"][name] = found = run(name, args.seconds)
        print(f"{name}: {json.dumps(found, indent=2)}", flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    out = args.out or ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Written to {out}", file=sys.stderr)
    return 1 if any(c["ok"] is False for c in result["checks"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
