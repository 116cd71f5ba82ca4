"""gRPC: edgekit's door beside a bare grpc.aio handler that does nothing but call ONNX Runtime on the same model.

    python benchmarks/serving_grpc.py [--rounds 5] [--seconds 3] [--json OUT.json]

An MLP (64 to 10 through 32) with raw tensors; load from `h2load` (Debian: nghttp2-client) with one call in flight a
connection, on the same cores as the server. Servers take turns within each round, and a ratio is the median over
rounds of what one round gave, so that a noisy machine disturbs both alike. CPU is the server process's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONNECTIONS = (1, 4, 16)
ASKED = {1: 1.8, 4: 5.0, 16: 8.0}
PATH = "inference.GRPCInferenceService/ModelInfer"
SAMPLE = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)


def mlp() -> bytes:
    """The model, with weights from a fixed seed."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def serve_edgekit(model: Path) -> None:
    from edgekit.runtime.ort import OrtSession
    from edgekit.serve.model import Model
    from edgekit.serve.server import Server

    served = Model(OrtSession(model, threads=1), name="mlp", sample={"x": SAMPLE})
    server = Server([served], port=0, grpc_port=0)
    server.run(ready=lambda _url: print(server.grpc_address, flush=True), signals=True)


def serve_aio(model: Path) -> None:
    import grpc
    import onnxruntime as ort
    from tritonclient.grpc import service_pb2

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    async def infer(request: Any, _context: Any) -> Any:
        (item,) = request.inputs
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(item.shape))
        (y,) = session.run(["y"], {"x": x})
        answer = service_pb2.ModelInferResponse(model_name="mlp", model_version="1")
        answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
        answer.raw_output_contents.append(y.tobytes())
        return answer

    async def run() -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            infer,
            request_deserializer=service_pb2.ModelInferRequest.FromString,
            response_serializer=service_pb2.ModelInferResponse.SerializeToString,
        )
        server = grpc.aio.server()
        service, method = PATH.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()

    asyncio.run(run())


@dataclass
class Running:
    name: str
    process: subprocess.Popen[str]
    address: str

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(name: str, model: Path) -> Running:
    command = [sys.executable, __file__, "--serve", name, "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        raise SystemExit(f"{name} did not start")
    return Running(name, process, address)


def request_body() -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="mlp")
    request.inputs.add(name="x", datatype="FP32", shape=SAMPLE.shape)
    request.outputs.add(name="y")
    request.raw_input_contents.append(SAMPLE.tobytes())
    message = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def check(server: Running, wanted: np.ndarray) -> None:
    """A server that answers anything but the right thing is not measured."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(server.address)
    given = triton.InferInput("x", list(SAMPLE.shape), "FP32")
    given.set_data_from_numpy(SAMPLE)
    got = client.infer("mlp", [given]).as_numpy("y")
    client.close()
    if not np.allclose(got, wanted, atol=1e-5):
        raise SystemExit(f"{server.name} gave a wrong answer")


def load(server: Running, connections: int, seconds: float, body: Path) -> dict[str, float]:
    """Requests a second, and the server's CPU time a request in microseconds."""
    command = ["h2load", "-c", str(connections), "-m", "1", "-t", "1", "-D", f"{seconds * 1000:.0f}ms", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{server.address}/{PATH}"]
    before, begun = server.cpu_s(), time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took_s, cpu_s = time.perf_counter() - begun, server.cpu_s() - before
    found = re.search(r"requests: (\d+) total, .*?(\d+) succeeded, (\d+) failed", out)
    assert found is not None, out
    done = int(found.group(2))
    if not done or int(found.group(3)) > connections:  # those in flight at the end count as failed
        raise SystemExit(f"{server.name}: {out}")
    return {"rate": done / min(took_s, seconds), "cpu_us": 1e6 * cpu_s / done}


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model, body = Path(folder) / "mlp.onnx", Path(folder) / "request.bin"
        model.write_bytes(mlp())
        body.write_bytes(request_body())
        import onnxruntime as ort

        (wanted,) = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x": SAMPLE})
        servers = [start(name, model) for name in ("edgekit", "aio")]
        try:
            for server in servers:
                check(server, wanted)
                load(server, 4, 0.5, body)
            results: dict[str, Any] = {}
            for count in CONNECTIONS:
                pairs = [[load(s, count, seconds, body) for s in servers] for _ in range(rounds)]
                results[str(count)] = {
                    "edgekit_per_s": statistics.median(ours["rate"] for ours, _ in pairs),
                    "aio_per_s": statistics.median(theirs["rate"] for _, theirs in pairs),
                    "ratio": statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in pairs),
                    "ratio_worst": min(ours["rate"] / theirs["rate"] for ours, theirs in pairs),
                    "edgekit_cpu_us": statistics.median(ours["cpu_us"] for ours, _ in pairs),
                    "aio_cpu_us": statistics.median(theirs["cpu_us"] for _, theirs in pairs),
                    "asked": ASKED[count],
                }
            return results
        finally:
            for server in servers:
                server.process.terminate()
                server.process.wait()


def show(results: dict[str, Any]) -> None:
    print("connections   edgekit   grpc.aio   ratio (worst)   asked   CPU a request, us")
    for count, r in results.items():
        rates = f"{count:>11} {r['edgekit_per_s']:>9.0f} {r['aio_per_s']:>10.0f}"
        ratios = f"{r['ratio']:>7.2f} ({r['ratio_worst']:.2f}) {r['asked']:>8}"
        print(f"{rates} {ratios} {r['edgekit_cpu_us']:>10.0f} and {r['aio_cpu_us']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=("edgekit", "aio"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        (serve_edgekit if args.serve == "edgekit" else serve_aio)(args.model)
        return
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is needed: apt-get install nghttp2-client")
    results = measure(args.rounds, args.seconds)
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
