"""Joining requests: the same server with and without it, over HTTP, as the number of clients grows.

    python benchmarks/batching.py [--rounds 5] [--seconds 3] [--json OUT.json]

Two models of one thread: the MLP of serving_grpc.py, and a transformer layer of its size (16 tokens of 32 numbers). Raw
tensors; load from `h2load --h1` (Debian: nghttp2-client) with one request in flight a connection, on the same cores.
Servers take turns within each round, and a ratio is the median over rounds of what one round gave. Asked for: at
least 1.5 times at 16 connections for the transformer, and nothing lost at one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from serving_grpc import mlp

CONNECTIONS = (1, 4, 16)
SHAPES = {"mlp": (1, 64), "transformer": (1, 16, 32)}


def transformer() -> bytes:
    """One layer with one head and a feed-forward part, then the mean of the tokens to 10 numbers."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    width = 32
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (width, width)) | {
        "w1": (width, 64),
        "w2": (64, width),
        "w3": (width, 10),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / s[0] ** 0.5).astype(np.float32), n) for n, s in shapes.items()
    ]
    weights += [numpy_helper.from_array(np.ones(width, np.float32), n) for n in ("g1", "g2")]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "tokens"))
    node = helper.make_node
    nodes = [
        *(node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["qk"]),
        node("Softmax", ["qk"], ["a"], axis=-1),
        node("MatMul", ["a", "v"], ["av"]),
        node("MatMul", ["av", "wo"], ["o"]),
        node("Add", ["x", "o"], ["r1"]),
        node("LayerNormalization", ["r1", "g1"], ["n1"], axis=-1),
        node("MatMul", ["n1", "w1"], ["f1"]),
        node("Relu", ["f1"], ["f2"]),
        node("MatMul", ["f2", "w2"], ["f3"]),
        node("Add", ["n1", "f3"], ["r2"]),
        node("LayerNormalization", ["r2", "g2"], ["n2"], axis=-1),
        node("ReduceMean", ["n2", "tokens"], ["m"], keepdims=0),
        node("MatMul", ["m", "w3"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, width])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])]
    graph = helper.make_graph(nodes, "transformer", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def sample(name: str, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, *SHAPES[name][1:])).astype(np.float32)


def serve(path: Path, joined: bool) -> None:
    from edgekit.runtime.ort import OrtSession
    from edgekit.serve.model import Model
    from edgekit.serve.options import ModelOptions
    from edgekit.serve.server import Server

    options = ModelOptions(max_batch=None if joined else 1)
    model = Model(OrtSession(path, threads=1), name="m", sample={"x": sample(path.stem, 4)}, options=options)
    server = Server([model], port=0)
    server.run(ready=lambda url: print(url, flush=True), signals=True)


def start(path: Path, joined: bool) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, __file__, "--serve", str(path), "--joined", str(int(joined))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def load(url: str, body: Path, head: int, connections: int, seconds: int) -> float:
    """Answered requests a second; anything but 200 ends the benchmark."""
    command = ["h2load", "--h1", "-t1", "-c", str(connections), "-D", str(seconds), "-d", str(body)]
    command += ["-H", f"Inference-Header-Content-Length: {head}", f"{url}/v2/models/m/infer"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", text)
    if codes is None or rate is None or any(int(n) for n in codes.groups()[1:]):
        raise SystemExit(f"h2load failed:\n{text}")
    return float(rate.group(1))


def compare(path: Path, rounds: int, seconds: int, folder: Path) -> dict[str, dict[str, float]]:
    x = sample(path.stem)
    item = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    body = folder / "body"
    body.write_bytes(head + x.tobytes())
    servers = [start(path, joined) for joined in (False, True)]
    rates: dict[int, list[tuple[float, float]]] = {c: [] for c in CONNECTIONS}
    try:
        for _ in range(rounds):
            for connections in CONNECTIONS:
                alone, joined = (load(url, body, len(head), connections, seconds) for _, url in servers)
                rates[connections].append((alone, joined))
    finally:
        for process, _ in servers:
            process.terminate()
            process.wait()
    out = {}
    for connections, pairs in rates.items():
        ratios = [joined / alone for alone, joined in pairs]
        alone, joined = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        out[str(connections)] = {
            "alone_req_s": alone,
            "joined_req_s": joined,
            "ratio": round(statistics.median(ratios), 3),
            "ratio_worst": round(min(ratios), 3),
        }
    return out


def measure(rounds: int, seconds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Both models, by name and number of connections."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("mlp", mlp()), ("transformer", transformer())):
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(model)
            results[name] = compare(path, rounds, seconds, Path(folder))
    return results


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    for name, rows in results.items():
        print(f"{name:<12} {'connections':>11} {'alone req/s':>12} {'joined req/s':>13} {'ratio (worst)':>14}")
        for connections, row in rows.items():
            rates = f"{row['alone_req_s']:>12.0f} {row['joined_req_s']:>13.0f}"
            print(f"{'':<12} {connections:>11} {rates} {row['ratio']:>7.2f} ({row['ratio_worst']:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--joined", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, bool(args.joined))
        return
    if shutil.which("h2load") is None:
        raise SystemExit("needs h2load (Debian: nghttp2-client)")
    results = measure(args.rounds, args.seconds)
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
