"""A network of ResNet-18's size behind each way in, beside a bare loop of the same session: called by serving.py."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import serving

IMAGE = (1, 3, 224, 224)
SHAPES = {"x": IMAGE, "y": (1, 1000)}
ASKED = 0.97
CLIENTS = 2
"""With one, the model waits while the client turns an answer into the next request; with two it always has work."""

LOOP = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.zeros((1, 3, 224, 224), np.float32)
session.run(None, {"x": x})
print("ready", flush=True)
for line in sys.stdin:
    begun, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < float(line):
        session.run(None, {"x": x})
        count += 1
    print(count / took, flush=True)
"""


def resnet18(path: Path) -> Path:
    """ResNet-18's layers with random weights, from PyTorch."""
    import torch
    from torch import nn

    class Basic(nn.Module):
        def __init__(self, wide: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(wide, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            same = wide == width and stride == 1
            self.skip = (
                nn.Identity()
                if same
                else nn.Sequential(nn.Conv2d(wide, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.skip(x))

    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    wide, blocks = 64, []
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Basic(wide, width, stride), Basic(width, width, 1)]
        wide = width
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
    program = torch.onnx.export(
        net, (torch.zeros(2, *IMAGE[1:]),), dynamo=True, input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    return path


@contextlib.contextmanager
def regions(port: int) -> Any:
    """Memory for the input and the output, registered with the server."""
    with contextlib.ExitStack() as stack:
        for name, shape in SHAPES.items():
            memory = shared_memory.SharedMemory(create=True, size=4 * int(np.prod(shape)))
            stack.callback(memory.unlink)
            stack.callback(memory.close)
            text = json.dumps({"key": f"/{memory.name}", "offset": 0, "byte_size": memory.size}).encode()
            head = f"POST /v2/systemsharedmemory/region/{name}/register HTTP/1.1\r\nHost: a\r\n"
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
                answer = client.recv(4096)
            assert answer.split()[1] == b"200", answer
        yield


def in_memory() -> serving.Request:
    """A request whose tensors are in shared memory."""

    def item(name: str) -> dict[str, Any]:
        size = 4 * int(np.prod(SHAPES[name]))
        return {"name": name, "parameters": {"shared_memory_region": name, "shared_memory_byte_size": size}}

    given = item("x") | {"shape": IMAGE, "datatype": "FP32"}
    body = json.dumps({"inputs": [given], "outputs": [item("y")]}).encode()
    return serving.Request("/v2/models/resnet18/infer", body)


def grpc_rate(address: str, body: Path, seconds: float) -> float:
    command = ["h2load", "-c", str(CLIENTS), "-m", "1", "-t", "1", "-D", f"{seconds:.0f}", "-d", str(body)]
    command += ["-w", "24", "-W", "24", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    command.append(f"http://{address}/{serving.serving_grpc.PATH}")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", out)
    assert found is not None, out
    return CLIENTS / (float(found.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1}[found.group(2)])


def grpc_body(path: Path) -> Path:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="resnet18")
    request.inputs.add(name="x", datatype="FP32", shape=IMAGE)
    request.raw_input_contents.append(np.zeros(IMAGE, np.float32).tobytes())
    message = request.SerializeToString()
    path.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return path


def measure(rounds: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Inferences a second of each way with CLIENTS clients, one thread, and their share of the bare loop's.

    The rate is CLIENTS by the mean time of a request (Little's law), for few of them end within a round.
    """
    model = resnet18(folder / "resnet18.onnx")
    package = serving.export(model, folder)
    plain = serving.binary_request("resnet18", np.zeros(IMAGE, np.float32))
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert loop.stdin is not None
    assert loop.stdout is not None
    port, grpc_port = serving.free_port(), serving.free_port()
    command = [*serving.edgekit_command(package, port), "--grpc-port", str(grpc_port)]
    rates: dict[str, list[float]] = {"loop": [], "http": [], "grpc": [], "shared memory": []}
    scripts = {"http": plain.script(folder), "shared memory": in_memory().script(folder)}
    body = grpc_body(folder / "resnet18.grpc")
    try:
        loop.stdout.readline()
        with serving.running("edgekit", command, port) as server, regions(port):
            for k in range(rounds + 1):
                print(seconds, file=loop.stdin, flush=True)
                found = {"loop": float(loop.stdout.readline())}
                for name, script in scripts.items():
                    found[name] = CLIENTS * 1e3 / serving.wrk(server, script, plain.path, CLIENTS, seconds)["mean_ms"]
                found["grpc"] = grpc_rate(f"127.0.0.1:{grpc_port}", body, seconds)
                for name, rate in found.items() if k else ():  # the first round warms up
                    rates[name].append(rate)
                time.sleep(0.1)
    finally:
        loop.stdin.close()
        loop.wait()
    return {
        name: {"per_s": round(statistics.median(each), 2), "over_loop": serving.ratio(each, rates["loop"])}
        for name, each in rates.items()
    }


def show(results: dict[str, Any]) -> None:
    """The table."""
    print("ResNet-18's size, two clients  inferences/s   of the bare loop (worst round)   asked")
    for name, r in results.items():
        over, asked = r["over_loop"], "" if name == "loop" else f"{ASKED:.2f}"
        print(f"{name:<30} {r['per_s']:>12.1f} {over['median']:>16.3f} ({over['worst']:.3f}) {asked:>14}")
