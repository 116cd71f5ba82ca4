"""edgekit serve beside other servers and bare stacks: the same request, the same model, the same cores.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--only http,start,cnn,grpc,joining]
                                 [--peer NAME=PYTHON ...] [--json OUT.json]

HTTP load comes from `wrk`, gRPC load from `h2load` (Debian: wrk, nghttp2-client), on the server's own cores. Servers
take turns in short rounds, and a ratio is the median over rounds of what one round gave, with the worst beside it, so
that a noisy machine disturbs all alike. CPU and memory are those of the server's processes together.

`--peer litserve=/venv/bin/python` names the environment that a peer is installed in; peers that are not installed in
this one, and are not named, are left out. Peers and what they run: serving_peers.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import serving_grpc

HERE = Path(__file__).resolve().parent
CONNECTIONS = (1, 4, 16)
PEERS = ("floor", "uvicorn", "mlserver", "kserve", "litserve")
ASKED = {"uvicorn": 1.6, "mlserver": 12.0, "kserve": 12.0, "litserve": 12.0}
FORBIDDEN = ("torch", "onnx", "matplotlib")
X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"

LUA = """
local file = io.open("%s", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
%s
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nRESULT %%d %%d %%d %%f %%f %%f\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency.mean, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass
class Request:
    """What wrk sends: a path, a body and header lines."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def script(self, folder: Path) -> Path:
        body, script = folder / f"{id(self)}.body", folder / f"{id(self)}.lua"
        body.write_bytes(self.body)
        script.write_text(LUA % (body, "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in self.headers.items())))
        return script


def binary_request(name: str, x: np.ndarray, tensor: str = "x") -> Request:
    """One tensor as the protocol's binary data, answered in binary."""
    item = {"name": tensor, "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Request(f"/v2/models/{name}/infer", head + x.tobytes(), headers)


def request_for(server: str) -> Request:
    as_json = {"Content-Type": "application/json"}
    if server == "litserve":
        return Request("/predict", json.dumps({"x": X[0].tolist()}).encode(), as_json)
    if server == "mlserver":  # it takes binary tensors over gRPC only
        item = {"name": "x", "shape": X.shape, "datatype": "FP32", "data": X[0].tolist()}
        return Request("/v2/models/mlp/infer", json.dumps({"inputs": [item]}).encode(), as_json)
    return binary_request("mlp", X)


@dataclass
class Running:
    """A server's process with its children."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    ready_s: float

    def _processes(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += map(int, (task / "children").read_text().split())
        return found

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        total = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                total += int(found.group(1)) if found else 0
        return total * 1024 / 1e6


def free_port() -> int:
    """The first of three free ports side by side, or so it looks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            client.sendall(READY)
            return client.recv(64).split()[1:2] in ([b"200"], [b"404"])  # LitServe has another path for it
    except OSError:
        return False


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, *, within_s: float = 60.0) -> Iterator[Running]:
    """A server once it answers; whatever it prints is dropped."""
    begun = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        while not healthy(port):
            if process.poll() is not None or time.perf_counter() - begun > within_s:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            time.sleep(0.002)
        yield Running(name, process, port, time.perf_counter() - begun)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # what a peer started and left behind
            os.killpg(process.pid, signal.SIGKILL)


def edgekit_command(package: Path, port: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "edgekit", "serve", str(package), "--port", str(port), "--threads", "1"]
    return [*command, "--grpc-port", "off", *options]


def wrk(server: Running, script: Path, path: str, connections: int, seconds: float) -> dict[str, float]:
    """Requests a second, latencies in milliseconds, and CPU a request in microseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script)]
    before = server.cpu_s()
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}{path}"], capture_output=True, text=True, check=True
    ).stdout
    cpu_s = server.cpu_s() - before
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+) (\S+) (\S+)", out)
    assert found is not None, out
    requests, duration_us, errors, mean_us, p50_us, p99_us = map(float, found.groups())
    if errors or not requests:
        raise SystemExit(f"{server.name}: {out}")
    return {
        "req_s": requests / duration_us * 1e6,
        "mean_ms": mean_us / 1e3,
        "p50_ms": p50_us / 1e3,
        "p99_ms": p99_us / 1e3,
        "cpu_us": cpu_s / requests * 1e6,
    }


def ratio(ours: list[float], theirs: list[float], *, smaller: bool = False) -> dict[str, float]:
    """Of each round, ours over theirs: the median and the worst."""
    each = [a / b for a, b in zip(ours, theirs)]
    return {"median": round(statistics.median(each), 3), "worst": round((max if smaller else min)(each), 3)}


def export(model: Path, folder: Path) -> Path:
    package = folder / f"{model.stem}.edge"
    command = [sys.executable, "-m", "edgekit", "export", str(model), "-o", str(package)]
    subprocess.run(command, check=True, capture_output=True)
    return package


def pythons(named: list[str]) -> dict[str, str]:
    """Which interpreter runs which peer."""
    out = dict(item.split("=", 1) for item in named)
    for name in PEERS:
        module = "uvloop" if name == "floor" else name
        python = out.setdefault(name, sys.executable)
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode:
            print(f"{name} is not installed for {python}: left out", file=sys.stderr)
            del out[name]
    return out


def http(rounds: int, seconds: float, peers: dict[str, str], folder: Path) -> dict[str, Any]:
    model = folder / "mlp.onnx"
    model.write_bytes(serving_grpc.mlp())
    package = export(model, folder)
    with contextlib.ExitStack() as stack:
        port = free_port()
        servers = [stack.enter_context(running("edgekit", edgekit_command(package, port), port))]
        for name in (n for n in PEERS if n in peers):
            port = free_port()
            command = [peers[name], str(HERE / "serving_peers.py"), name, str(model), str(port)]
            servers.append(stack.enter_context(running(name, command, port)))
        requests = {s.name: request_for(s.name) for s in servers}
        scripts = {name: request.script(folder) for name, request in requests.items()}
        for server in servers:
            wrk(server, scripts[server.name], requests[server.name].path, 4, 1)
        rows: dict[str, dict[int, list[dict[str, float]]]] = {s.name: {c: [] for c in CONNECTIONS} for s in servers}
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for server in servers:
                    path = requests[server.name].path
                    rows[server.name][connections].append(wrk(server, scripts[server.name], path, connections, seconds))
        own = rows["edgekit"]
        out: dict[str, Any] = {}
        for server in servers:
            entry: dict[str, Any] = {"ready_s": round(server.ready_s, 3), "rss_mb": round(server.rss_mb(), 1)}
            for connections, each in rows[server.name].items():
                figures = {k: round(statistics.median(r[k] for r in each), 4) for k in each[0]}
                ours = own[connections]
                entry[str(connections)] = figures | {
                    "edgekit_over_req_s": ratio([r["req_s"] for r in ours], [r["req_s"] for r in each]),
                    "edgekit_over_p50": ratio([r["p50_ms"] for r in ours], [r["p50_ms"] for r in each], smaller=True),
                    "edgekit_over_cpu": ratio([r["cpu_us"] for r in ours], [r["cpu_us"] for r in each], smaller=True),
                }
            out[server.name] = entry
        return out


def show_http(results: dict[str, Any]) -> None:
    print("server    conn.    req/s  p50 ms  p99 ms  CPU us  edgekit/it (worst)  asked  MB")
    for name, entry in results.items():
        for connections in map(str, CONNECTIONS):
            r, over = entry[connections], entry[connections]["edgekit_over_req_s"]
            asked = ASKED.get(name, "") if connections == "16" else ""
            first = f"{name:<9} {connections:>5} {r['req_s']:>8.0f} {r['p50_ms']:>7.3f} {r['p99_ms']:>7.2f}"
            print(
                f"{first} {r['cpu_us']:>7.0f} {over['median']:>10.2f} ({over['worst']:.2f}) {asked:>6} "
                f"{entry['rss_mb']:>4.0f}"
            )
        p50 = entry["1"]["edgekit_over_p50"]
        asked = ", asked: at most 1.1" if name == "floor" else ""
        print(f"          p50 at 1 connection, edgekit over it: {p50['median']:.2f} (worst {p50['worst']:.2f}{asked})")


def start(rounds: int, folder: Path) -> dict[str, Any]:
    """From process start to ready with the demo's package, memory after a request, and what was imported."""
    package = folder / "digits_cnn.edge"
    recipe = str(HERE.parent / "models" / "digits_cnn.py")
    subprocess.run(
        [sys.executable, "-m", "edgekit", "export", recipe, "-o", str(package)], check=True, capture_output=True
    )
    request = binary_request("digits_cnn", np.zeros((1, 1, 32, 32), np.float32), "image")
    times, memory = [], []
    for _ in range(2 * rounds + 1):
        port = free_port()
        with running("edgekit", edgekit_command(package, port), port) as server:
            wrk(server, request.script(folder), request.path, 1, 1)
            times.append(server.ready_s)
            memory.append(server.rss_mb())
    port, log = free_port(), folder / "imports"
    with log.open("wb") as file:
        command = edgekit_command(package, port)
        process = subprocess.Popen([command[0], "-X", "importtime", *command[1:]], stdout=file, stderr=file)
    while not healthy(port):
        time.sleep(0.01)
    process.terminate()
    process.wait()
    names = {line.rpartition("|")[2].strip().split(".")[0] for line in log.read_text().splitlines()}
    return {
        "ready_s": round(statistics.median(times), 3),
        "ready_s_least_most": [round(min(times), 3), round(max(times), 3)],
        "rss_mb": round(statistics.median(memory), 1),
        "imported": sorted(names & set(FORBIDDEN)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="http,start,cnn,grpc,joining", metavar="PARTS")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    for tool in ("wrk", "h2load"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is needed: apt-get install wrk nghttp2-client")
    parts = args.only.split(",")
    results: dict[str, Any] = {}
    if args.json and args.json.exists():  # parts that are not measured now stay as they are
        results = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "http" in parts:
            results["http"] = http(args.rounds, args.seconds, pythons(args.peer), folder)
            show_http(results["http"])
        if "start" in parts:
            found = results["start"] = start(args.rounds, folder)
            print(
                f"start to ready: {found['ready_s']} s (asked: under 0.35), resident memory {found['rss_mb']} MB "
                f"(asked: under 80), imported of {', '.join(FORBIDDEN)}: {', '.join(found['imported']) or 'nothing'}"
            )
        if "cnn" in parts:
            import serving_cnn

            results["cnn"] = serving_cnn.measure(args.rounds, args.seconds, folder)
            serving_cnn.show(results["cnn"])
        if "grpc" in parts:
            results["grpc"] = serving_grpc.measure(args.rounds, args.seconds)
            serving_grpc.show(results["grpc"])
        if "joining" in parts:
            import batching

            results["joining"] = batching.measure(args.rounds, round(args.seconds))
            batching.show(results["joining"])
    results["load_average"] = [round(n, 2) for n in os.getloadavg()]
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
