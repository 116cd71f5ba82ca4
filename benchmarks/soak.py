"""Full load with everything that goes wrong in the field, for as long as asked; every answer is checked.

    python benchmarks/soak.py [--minutes 10] [--json OUT.json]

Beside each other, on a server of its own: well-behaved clients over HTTP (raw tensors, JSON, several rows, pipelined)
and over gRPC; a package that is replaced every few seconds; and on both doors clients that hang, leave in the middle,
send slowly and send garbage. Asked for: no wrong answer, none lost, memory flat within 2 %, p99 stable. Then another
model gets 10 times what it can do: what is answered must stay above 90 % of that, and the rest be refused fast.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soak_clients
from onnx import TensorProto, helper, numpy_helper

from edgekit._files import exchange

REPLACE_S = 3.0
OVER = 10
CROWD = 256


def net(seed: int, *, wide: int = 32, layers: int = 1) -> bytes:
    """An MLP of 64 to 10 with other weights for each seed."""
    rng = np.random.default_rng(seed)
    sizes = [64, *[wide] * layers, 10]
    nodes, weights, at = [], [], "x"
    for k, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        values = (rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{k}"))
        last = k == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [at, f"w{k}"], ["y" if last else f"h{k}"]))
        at = f"r{k}"
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [at]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def prepare(folder: Path) -> dict[str, list[Path]]:
    """The packages in `folder/served`, and the two that take turns in `folder/a` and `folder/b`; models by name."""
    models: dict[str, list[Path]] = {}
    kinds = {"steady": [0], "changing": [1, 2], "heavy": [3]}
    (folder / "served").mkdir()
    for name, seeds in kinds.items():
        models[name] = []
        for seed, place in zip(seeds, "ab"):
            (folder / place).mkdir(exist_ok=True)
            path = folder / place / f"{name}.onnx"
            path.write_bytes(net(seed, wide=1024, layers=8) if name == "heavy" else net(seed))
            models[name].append(path)
            package = folder / place / f"{name}.edge"
            command = [sys.executable, "-m", "edgekit", "export", str(path), "-o", str(package)]
            subprocess.run(command, check=True, capture_output=True)
        shutil.copytree(folder / "a" / f"{name}.edge", folder / "served" / f"{name}.edge")
    (folder / "served" / "heavy.toml").write_text("max_batch = 1\nqueue_limit = 32\n")
    return models


def replace(folder: Path, place: str) -> None:
    """Put the package of `place` where the other is served, in one step."""
    stage = folder / "stage.edge"
    shutil.copytree(folder / place / "changing.edge", stage)
    exchange(stage, folder / "served" / "changing.edge")
    shutil.rmtree(stage)


def rss_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024 / 1e6


def drift(memory: list[tuple[float, float]]) -> float:
    """Growth in per cent of resident memory, from a line through all samples after the first tenth."""
    kept = memory[len(memory) // 10 :]
    t, m = np.array(kept).T
    slope, start = np.polyfit(t - t[0], m, 1)
    return float(100 * slope * (t[-1] - t[0]) / start)


def load(address: str, grpc: str, models: dict[str, list[Path]], folder: Path, pid: int, seconds: float) -> Any:
    """What the clients saw, and what the server took."""
    queue: Any = multiprocessing.Queue()
    roles = {"http": soak_clients.http_clients, "grpc": soak_clients.grpc_clients, "hostile": soak_clients.hostile}
    processes = [
        multiprocessing.Process(target=role, args=(name, address, grpc, models, seconds, queue))
        for name, role in roles.items()
    ]
    for process in processes:
        process.start()
    begun, turn, memory, replaced = time.monotonic(), 0, [], 0
    while (now := time.monotonic() - begun) < seconds:
        memory.append((now, rss_mb(pid)))
        if now > (turn + 1) * REPLACE_S:
            turn += 1
            replace(folder, "ab"[turn % 2])
            replaced += 1
        time.sleep(0.5)
    seen = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    results: dict[str, Any] = {
        "seconds": seconds,
        "replaced": replaced,
        "rss_mb_begin_end": [round(statistics.median(m for _, m in part), 1) for part in (memory[8:16], memory[-8:])],
        "rss_drift_percent": round(drift(memory), 2),
    }
    for name, found in seen.items():
        windows = found.pop("windows", None)
        if windows:
            p99 = [round(float(np.percentile(w, 99)) * 1e3, 2) for w in windows if len(w) > 100]
            found["p99_ms"] = {"median": statistics.median(p99), "worst_window": max(p99), "windows": len(p99)}
        results[name] = found
    return results


def overload(address: str, folder: Path, rounds: int, seconds: float, pid: int) -> dict[str, Any]:
    """The heavy model at its capacity and at 10 times that, in turns."""
    memory, pairs = rss_mb(pid), []
    for _ in range(rounds):
        full = soak_clients.heavy_load(address, folder, connections=16, delay_ms=0, seconds=seconds)
        delay_ms = round(1e3 * CROWD / (OVER * full["answered_req_s"]))
        over = soak_clients.heavy_load(address, folder, connections=CROWD, delay_ms=delay_ms, seconds=seconds)
        pairs.append((full, over))
    goodput = [over["answered_req_s"] / full["answered_req_s"] for full, over in pairs]
    offered = [(o["answered_req_s"] + o["refused_req_s"]) / full["answered_req_s"] for full, o in pairs]

    def middle(key: str) -> float:
        return round(statistics.median(over[key] for _, over in pairs), 2)

    return {
        "capacity_req_s": round(statistics.median(full["answered_req_s"] for full, _ in pairs), 1),
        "offered_of_capacity": round(statistics.median(offered), 2),
        "goodput_of_capacity": {"median": round(statistics.median(goodput), 3), "worst": round(min(goodput), 3)},
        "neither_answered_nor_refused": sum(over["other"] for _, over in pairs),
        "p50_ms": middle("p50_ms"),
        "p99_ms": middle("p99_ms"),
        "rss_mb_before_after": [round(memory, 1), round(rss_mb(pid), 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name, open(Path(name, "log"), "w+") as log:
        folder = Path(name)
        models = prepare(folder)
        command = [sys.executable, "-m", "edgekit", "serve", str(folder / "served"), "--port", "0", "--grpc-port", "0"]
        process = subprocess.Popen(
            [*command, "--watch", "1", "--threads", "1", "--json"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            address = ready["url"].removeprefix("http://")
            results = load(address, ready["grpc"], models, folder, process.pid, 60 * args.minutes)
            results["overload"] = overload(address, folder, 5, 4.0, process.pid)
            alive = process.poll() is None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        log.seek(0)
        faults = [line for line in log if "Traceback" in line or "ERROR" in line or "failed" in line]
    results |= {
        "server_lived": alive,
        "exit_code": process.returncode,
        "errors_in_log": len(faults),
        "load_average": [round(n, 2) for n in os.getloadavg()],
    }
    print(json.dumps(results, indent=2))
    print("".join(faults[:5]), file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    wrong = sum(results[role][kind] for role in ("http", "grpc", "hostile") for kind in ("wrong", "lost"))
    raise SystemExit(0 if alive and not wrong and not faults and process.returncode == 0 else 1)


if __name__ == "__main__":
    main()
