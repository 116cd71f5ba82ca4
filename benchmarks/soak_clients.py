"""The clients of soak.py: each kind in a process of its own, checking what it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

WINDOW_S = 10.0
PATIENCE_S = 20.0
POOL = 128
HEAVY_ROWS = 16


class Known:
    """Inputs with the answers of every model that may give them."""

    def __init__(self, models: dict[str, list[Path]]) -> None:
        import onnxruntime as ort

        self.x = np.random.default_rng(5).standard_normal((POOL, 64)).astype(np.float32)
        self.y = {
            name: [
                ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": self.x})[0]
                for p in paths
            ]
            for name, paths in models.items()
        }

    def right(self, name: str, at: int, rows: int, got: np.ndarray) -> bool:
        """Whether `got` is what one of the model's packages gives."""
        wanted = [y[at : at + rows] for y in self.y[name]]
        return any(got.shape == w.shape and np.allclose(got, w, rtol=1e-4, atol=1e-5) for w in wanted)


def http_request(name: str, x: np.ndarray, *, as_json: bool = False, tag: str = "") -> bytes:
    item: dict[str, Any] = {"name": "x", "shape": x.shape, "datatype": "FP32"}
    document: dict[str, Any] = {"inputs": [item]} | ({"id": tag} if tag else {})
    lines, raw = "", b""
    if as_json:
        item["data"] = x.ravel().tolist()
    else:
        item["parameters"], raw = {"binary_data_size": x.nbytes}, x.tobytes()
        document["parameters"] = {"binary_data_output": True}
    head = json.dumps(document).encode()
    if raw:
        lines = f"Inference-Header-Content-Length: {len(head)}\r\n"
    lines += f"Content-Length: {len(head) + len(raw)}\r\n"
    return f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode() + head + raw


async def http_answer(reader: asyncio.StreamReader) -> tuple[int, np.ndarray]:
    """Status and the tensor."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])}
    body = await reader.readexactly(int(fields["content-length"]))
    status = int(head[9:12])
    if status != 200:
        return status, np.empty(0)
    size = fields.get("inference-header-content-length")
    document = json.loads(body[: int(size)] if size else body)
    output = document["outputs"][0]
    values = np.frombuffer(body[int(size) :], np.float32) if size else np.array(output["data"], np.float32)
    return status, values.reshape(output["shape"])


class Tally:
    """What one process saw; latencies by windows of time."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.counts: Counter[str] = Counter(answered=0, wrong=0, lost=0)
        self.windows: list[list[float]] = []
        self.examples: list[str] = []

    def add(self, latency_s: float) -> None:
        at = int((time.monotonic() - self.begun) / WINDOW_S)
        while len(self.windows) <= at:
            self.windows.append([])
        self.windows[at].append(latency_s)
        self.counts["answered"] += 1

    def fault(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {example[:200]}")

    def document(self) -> dict[str, Any]:
        return {**self.counts, "examples": self.examples, "windows": self.windows}


def http_clients(
    name: str, address: str, _grpc: str, models: dict[str, list[Path]], seconds: float, queue: Any
) -> None:
    """Eight connections that keep the server busy; one of them pipelines."""
    known, tally = Known(models), Tally()
    end = time.monotonic() + seconds
    host, port = address.split(":")

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < end:
            asked = []
            begun = time.monotonic()
            for _ in range(8 if seed == 0 else 1):
                model, rows = rng.choice(("steady", "changing")), rng.choice((1, 1, 1, 3))
                at = rng.randrange(POOL - rows)
                as_json, tag = rng.random() < 0.2, "7" if rng.random() < 0.2 else ""
                writer.write(http_request(model, known.x[at : at + rows], as_json=as_json, tag=tag))
                asked.append((model, at, rows))
            for model, at, rows in asked:
                try:
                    status, got = await asyncio.wait_for(http_answer(reader), PATIENCE_S)
                except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                    tally.fault("lost", repr(error))
                    return
                if status != 200:
                    tally.fault("lost", f"{model} answered {status}")
                elif not known.right(model, at, rows, got):
                    tally.fault("wrong", f"{model} {at} {rows} {got}")
                else:
                    tally.add(time.monotonic() - begun)
        writer.close()

    async def run() -> None:
        await asyncio.gather(*(client(k) for k in range(8)))

    asyncio.run(run())
    queue.put((name, tally.document()))


def grpc_clients(
    name: str, _address: str, grpc: str, models: dict[str, list[Path]], seconds: float, queue: Any
) -> None:
    """Four calls at a time over two connections."""
    from grpc import aio
    from tritonclient.grpc import service_pb2

    known, tally = Known(models), Tally()
    end = time.monotonic() + seconds

    async def client(channel: Any, seed: int) -> None:
        rng = random.Random(seed)
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        while time.monotonic() < end:
            model, rows = rng.choice(("steady", "changing")), rng.choice((1, 1, 3))
            at = rng.randrange(POOL - rows)
            request = service_pb2.ModelInferRequest(model_name=model)
            request.inputs.add(name="x", datatype="FP32", shape=(rows, 64))
            request.raw_input_contents.append(known.x[at : at + rows].tobytes())
            begun = time.monotonic()
            try:
                answer = await call(request, timeout=PATIENCE_S)
            except aio.AioRpcError as error:
                tally.fault("lost", f"{model}: {error.code()} {error.details()}")
                continue
            got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(tuple(answer.outputs[0].shape))
            if known.right(model, at, rows, got):
                tally.add(time.monotonic() - begun)
            else:
                tally.fault("wrong", f"{model} {at} {rows} {got}")

    async def run() -> None:
        channels = [aio.insecure_channel(grpc, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)]
        await asyncio.gather(*(client(channels[k % 2], k) for k in range(4)))
        for channel in channels:
            await channel.close()

    asyncio.run(run())
    queue.put((name, tally.document()))


def hostile(name: str, address: str, grpc: str, models: dict[str, list[Path]], seconds: float, queue: Any) -> None:
    """Clients that hang, leave, send slowly and send garbage; the slow ones are owed a right answer."""
    known, tally = Known(models), Tally()
    end = time.monotonic() + seconds
    doors = {"http": address.split(":"), "grpc": grpc.split(":")}
    whole = http_request("steady", known.x[:1])

    async def connect(door: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = doors[door]
        return await asyncio.open_connection(host, int(port))

    async def hangs(rng: random.Random, door: str) -> None:
        reader, writer = await connect(door)
        writer.write(whole[: rng.randrange(len(whole))] if door == "http" else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(), rng.uniform(1, 15))
        writer.close()

    async def leaves(rng: random.Random, door: str) -> None:
        _, writer = await connect(door)
        data = whole * rng.randint(1, 5) + whole[: rng.randrange(len(whole))]
        writer.write(data if door == "http" else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        await asyncio.sleep(rng.choice((0, 0, 0.01)))
        if rng.random() < 0.5:  # with a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def garbage(rng: random.Random, door: str) -> None:
        reader, writer = await connect(door)
        start = rng.choice((b"", b"GET ", b"POST /v2 HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        writer.write(start + rng.randbytes(rng.randint(1, 4000)))
        got = b""
        with contextlib.suppress(asyncio.TimeoutError):
            got = await asyncio.wait_for(reader.read(1000), 2)
        if b"Traceback" in got or got.startswith(b"HTTP/1.1 5"):
            tally.fault("wrong", f"garbage was answered {got!r}")
        writer.close()

    async def slowly(rng: random.Random, _door: str) -> None:
        reader, writer = await connect("http")
        at = 0
        while at < len(whole):
            size = rng.randint(1, 60)
            writer.write(whole[at : at + size])
            at += size
            await asyncio.sleep(0.05)
        try:
            status, got = await asyncio.wait_for(http_answer(reader), PATIENCE_S)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally.fault("lost", f"a slow client: {error!r}")
            return
        if status != 200 or not known.right("steady", 0, 1, got):
            tally.fault("wrong", f"a slow client: {status} {got}")
        tally.counts["answered"] += 1
        writer.close()

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        kinds = (hangs, leaves, garbage, slowly)
        while time.monotonic() < end:
            kind = kinds[seed % len(kinds)]
            tally.counts[kind.__name__] += 1
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                await kind(rng, rng.choice(("http", "grpc")))
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def run() -> None:
        await asyncio.gather(*(client(k) for k in range(16)))

    asyncio.run(run())
    queue.put((name, tally.document()))


LUA = """
local file = io.open("%s", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
wrk.headers["Inference-Header-Content-Length"] = "%d"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() answered, refused, other = 0, 0, 0 end
function delay() return %d end
function response(status)
  if status == 200 then answered = answered + 1
  elseif status == 503 then refused = refused + 1
  else other = other + 1 end
end
done = function(summary, latency)
  local e, t = summary.errors, threads[1]
  io.write(string.format("\\nRESULT %%d %%d %%d %%d %%d %%f\\n", t:get("answered"), t:get("refused"),
    t:get("other") + e.connect + e.read + e.write + e.timeout, summary.duration, latency:percentile(50),
    latency:percentile(99)))
end
"""


def heavy_load(address: str, folder: Path, *, connections: int, delay_ms: int, seconds: float) -> dict[str, float]:
    """What becomes of requests to the heavy model; each connection waits `delay_ms` before the next. Needs wrk."""
    request = http_request("heavy", np.ones((HEAVY_ROWS, 64), np.float32))
    found = re.search(rb"Inference-Header-Content-Length: (\d+)", request)
    assert found is not None
    body, script = folder / "heavy.body", folder / "heavy.lua"
    body.write_bytes(request.partition(b"\r\n\r\n")[2])
    script.write_text(LUA % (body, int(found.group(1)), delay_ms))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script), "--timeout", "10s"]
    command.append(f"http://{address}/v2/models/heavy/infer")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\S+) (\S+)", out)
    assert result is not None, out
    answered, refused, other, took_us, p50_us, p99_us = map(float, result.groups())
    took_s = took_us / 1e6
    return {
        "answered_req_s": answered / took_s,
        "refused_req_s": refused / took_s,
        "other": other,
        "p50_ms": p50_us / 1e3,
        "p99_ms": p99_us / 1e3,
    }
