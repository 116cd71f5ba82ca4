"""edgekit's INT8 beside ONNX Runtime's own quantizer on the same nets, the same samples and the same runtime.

  python benchmarks/quantize.py            accuracy on small nets, plain and hostile, and speed on large ones
  python benchmarks/quantize.py --quick    the small nets that need no training, fewer samples

Agreement and top-1 are on augmented images of the test split that no tool has seen. Latency is the median over runs
taken in turns in one process. The table goes to stdout, the figures to benchmarks/results/quantize.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnxruntime as ort
from onnxruntime import quantization as peer

from edgekit.export.build import export
from edgekit.package import Package
from edgekit.quantize.apply import quantize_package
from edgekit.recipe import ModelSpec

RESULTS = Path(__file__).resolve().parent / "results" / "quantize.json"
SAMPLES = 256


class Reader(peer.CalibrationDataReader):
    """Feeds the same samples to the peer."""

    def __init__(self, feed: dict[str, np.ndarray], batch: int) -> None:
        count = len(next(iter(feed.values())))
        self.feeds = iter([{k: v[i : i + batch] for k, v in feed.items()} for i in range(0, count, batch)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _peer(source: Path, target: Path, feed: dict[str, np.ndarray], **options: Any) -> None:
    ready = target.with_name("prepared.onnx")
    peer.shape_inference.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    peer.quantize_static(
        str(ready), str(target), Reader(feed, 16), quant_format=peer.QuantFormat.QDQ, weight_type=peer.QuantType.QInt8,
        **options,
    )  # fmt: skip


U8, S8 = peer.QuantType.QUInt8, peer.QuantType.QInt8
PEERS: dict[str, Callable[[Path, Path, dict[str, np.ndarray]], None]] = {
    "ORT U8S8 per-channel": lambda s, t, f: _peer(s, t, f, per_channel=True, activation_type=U8),
    "ORT U8S8 per-channel, 7-bit weights": lambda s, t, f: _peer(
        s, t, f, per_channel=True, activation_type=U8, reduce_range=True
    ),
    "ORT S8S8 per-tensor": lambda s, t, f: _peer(s, t, f, per_channel=False, activation_type=S8),
}


def session(path: Path | str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latencies(models: dict[str, Path], feed: dict[str, np.ndarray], threads: int, budget_s: float) -> dict[str, float]:
    """Median milliseconds of each model on `feed`, run in turns."""
    sessions = {name: session(path, threads) for name, path in models.items()}
    seen: dict[str, list[float]] = {name: [] for name in sessions}
    for s in sessions.values():
        s.run(None, feed)
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(next(iter(seen.values()))) < 5:
        for name, s in sessions.items():
            start = time.perf_counter()
            s.run(None, feed)
            seen[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(times)) for name, times in seen.items()}


def scores(path: Path, images: np.ndarray, *, literal: bool = False) -> np.ndarray:
    """The net's scores; `literal` runs Q/DQ as written (TensorRT's form must not be fused for this CPU)."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([run.run(None, {"image": images[i : i + 100]})[0] for i in range(0, len(images), 100)])


def accuracy(spec: ModelSpec, folder: Path, count: int) -> list[dict[str, Any]]:
    """Every tool on one net: top-1 and agreement with FP32, in percent."""
    images, labels = nets.hard_test()
    images, labels = images[:count], labels[:count]
    package = export(spec, output=folder / f"{spec.name}.edge", force=True)
    source = package.model_file(package.reference)
    reference = scores(source, images).argmax(axis=1)
    feed = {k: np.asarray(v) for k, v in spec.sample(SAMPLES, 0).items()}
    np.savez(folder / "samples.npz", **feed)
    rows = [_row(spec.name, "FP32", reference, reference, labels, source, 0.0)]
    start = time.perf_counter()
    result = quantize_package(package, calib=folder / "samples.npz")
    wall = time.perf_counter() - start
    for variant in ("int8", "int8-trt"):
        path = result.package.model_file(result.package.variant(variant))
        found = scores(path, images, literal=variant == "int8-trt").argmax(axis=1)
        rows.append(_row(spec.name, f"edgekit {variant}", found, reference, labels, path, wall))
    for name, run in PEERS.items():
        target = folder / "peer.onnx"
        start = time.perf_counter()
        run(source, target, feed)
        wall = time.perf_counter() - start
        rows.append(_row(spec.name, name, scores(target, images).argmax(axis=1), reference, labels, target, wall))
    return rows


def _row(
    net: str, tool: str, found: np.ndarray, reference: np.ndarray, labels: np.ndarray, path: Path, wall: float
) -> dict[str, Any]:
    return {
        "net": net,
        "tool": tool,
        "top1": 100 * float((found == labels).mean()),
        "agreement": 100 * float((found == reference).mean()),
        "bytes": path.stat().st_size,
        "wall_s": wall,
    }


def speed(name: str, folder: Path, *, samples: int, budget_s: float) -> list[dict[str, Any]]:
    """Latency of a large net at one thread: FP32, edgekit, and the peer's fastest form."""
    spec = nets.large(name)
    package = export(spec, output=folder / f"{name}.edge", force=True)
    source = package.model_file(package.reference)
    feed = {k: np.asarray(v) for k, v in spec.sample(samples, 0).items()}
    np.savez(folder / "samples.npz", **feed)
    result = quantize_package(package, calib=folder / "samples.npz", max_drop=100)
    target = folder / "peer.onnx"
    PEERS["ORT U8S8 per-channel"](source, target, {k: v[:16] for k, v in feed.items()})
    ours: Package = result.package
    models = {"FP32": source, "edgekit int8": ours.model_file(ours.variant("int8")), "ORT U8S8 per-channel": target}
    one = {k: v[:1] for k, v in feed.items()}
    times = latencies(models, one, 1, budget_s)
    report = result.report
    return [
        {
            "net": name,
            "tool": tool,
            "latency_ms": ms,
            "speed_up": times["FP32"] / ms,
            "calibration_s": report.wall_s if tool == "edgekit int8" else None,
            "peak_bytes": report.peak_bytes if tool == "edgekit int8" else None,
        }
        for tool, ms in times.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the demo CNN only, 600 images, no large nets")
    parser.add_argument("--no-speed", action="store_true", help="leave the large nets out")
    parser.add_argument("--samples", type=int, default=32, help="images that calibrate the large nets (default 32)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    small = ("cnn",) if args.quick else nets.NAMES
    accuracies: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as where:
        for name in small:
            for is_hostile in (False, True):
                rows = accuracy(nets.recipe(name, is_hostile=is_hostile), Path(where), 600 if args.quick else 10**6)
                accuracies += rows
                for r in rows:
                    print(f"{r['net']:20} {r['tool']:36} top-1 {r['top1']:6.2f} %  agreement {r['agreement']:6.2f} %")
        for name in () if args.quick or args.no_speed else nets.LARGE:
            rows = speed(name, Path(where), samples=args.samples, budget_s=5)
            speeds += rows
            for r in rows:
                print(f"{r['net']:20} {r['tool']:36} {r['latency_ms']:8.2f} ms  {r['speed_up']:5.2f} x FP32")
    document = {
        "machine": {"processor": _processor(), "python": platform.python_version(), "onnxruntime": ort.__version__},
        "quick": args.quick,
        "images": 600 if args.quick else len(nets.hard_test()[0]),
        "calibration_samples": SAMPLES,
        "accuracy": accuracies,
        "speed_one_thread": speeds,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {RESULTS.name}", file=sys.stderr)
    return 0


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    raise SystemExit(main())
