"""Damaged HTTP at speed: mutated requests straight into the door, no socket between.

    python benchmarks/fuzz_http.py [--requests 1000000] [--seed 0] [--gather]

Each conversation runs twice: in one piece, on a door that remembers heads and what they ask, and cut at random on one
that does not; both must answer alike. A run counts as clean if nothing was answered 5xx, no answer was missing, cut or
different, nothing was logged as an error, and every byte that was counted as held is let go of when its connection
ends. Then the cases by which one request is smuggled behind another must all be refused, with nothing behind them
answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_grpc import Wire, errors_logged

from edgekit.runtime.ort import OrtSession
from edgekit.serve import turn_batch
from edgekit.serve.app import App
from edgekit.serve.heads import Heads
from edgekit.serve.http import Door
from edgekit.serve.http_messages import KnownHead
from edgekit.serve.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from edgekit.serve.routes import Routes
from edgekit.serve.warmup import Cost
from tests.serve.packages import identity_package, scaled_package, words_package
from tests.serve.test_fuzz import SEEDS, TOKENS
from tests.tiny import tiny_model

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _post(lines: bytes, body: bytes = b"hello") -> bytes:
    return b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n" + body


SMUGGLING = {
    "both lengths": _post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"),
    "both lengths, the other way": _post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    "two lengths": _post(b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    "the same length twice": _post(b"Content-Length: 5\r\ncontent-length: 5\r\n"),
    "a list of lengths": _post(b"Content-Length: 5, 5\r\n"),
    "a signed length": _post(b"Content-Length: +5\r\n"),
    "a negative length": _post(b"Content-Length: -5\r\n"),
    "a hexadecimal length": _post(b"Content-Length: 0x5\r\n"),
    "a length in two parts": _post(b"Content-Length: 5 5\r\n"),
    "an empty length": _post(b"Content-Length:\r\n"),
    "a length beyond 64 bits": _post(b"Content-Length: 99999999999999999999999\r\n"),
    "a space before the colon": _post(b"Content-Length : 5\r\n"),
    "a space before the colon of the coding": _post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "a folded coding": _post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "a folded header": _post(b"X: a\r\n b\r\nContent-Length: 5\r\n"),
    "a folded first header": b"GET /v2 HTTP/1.1\r\n Host: a\r\n\r\n",
    "the coding twice": _post(CHUNKED * 2, b"0\r\n\r\n"),
    "another coding": _post(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n"),
    "chunked and another coding": _post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "another coding and chunked": _post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "a coding that looks like chunked": _post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "a coding behind a vertical tab": _post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "a coding in HTTP/1.0": _post(CHUNKED, b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "a chunk with a signed size": _post(CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk with a negative size": _post(CHUNKED, b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk with a prefixed size": _post(CHUNKED, b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk beyond 64 bits": _post(CHUNKED, b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk without a size": _post(CHUNKED, b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than it says": _post(CHUNKED, b"3\r\nhello\r\n0\r\n\r\n"),
    "a chunk without a line end": _post(CHUNKED, b"5\r\nhello0\r\n\r\n"),
    "a chunk size that ends with LF": _post(CHUNKED, b"5\nhello\r\n0\r\n\r\n"),
    "a chunk that ends with LF": _post(CHUNKED, b"5\r\nhello\n0\r\n\r\n"),
    "an extension that ends with LF": _post(CHUNKED, b"5;a\nhello\r\n0\r\n\r\n"),
    "lines that end with LF": b"GET /v2 HTTP/1.1\nHost: a\n\n",
    "one line that ends with LF": _post(b"X: a\nContent-Length: 5\r\n"),
    "a line that ends with CR": _post(b"X: a\rContent-Length: 5\r\n"),
    "NUL in a header": _post(b"X: a\0b\r\nContent-Length: 5\r\n"),
    "NUL in a header's name": _post(b"X\0: a\r\nContent-Length: 5\r\n"),
    "a space in a header's name": _post(b"Content Length: 5\r\n"),
    "a line without a colon": _post(b"Content-Length 5\r\n"),
    "two hosts": _post(b"Host: b\r\nContent-Length: 5\r\n"),
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "HTTP/2.0": b"GET /v2 HTTP/2.0\r\nHost: a\r\n\r\n",
    "a version of two digits": b"GET /v2 HTTP/1.10\r\nHost: a\r\n\r\n",
    "a tab in the request line": b"GET\t/v2\tHTTP/1.1\r\nHost: a\r\n\r\n",
}


JOINS = Cost(1e-5, 16, ((32, 1e-5), (64, 1e-5)))
"""Of a model whose requests are worth running together."""


class Forgetful(Heads):
    """Gives every request to the parser."""

    def find(self, data: bytes) -> KnownHead | None:
        return None


def app_of() -> App:
    """The models that the seeds ask for."""
    with tempfile.TemporaryDirectory() as name:
        packages = [p(Path(name) / f"{n}.edge") for n, p in PACKAGES.items()]
        models = [
            Model(OrtSession((package.path / "fp32.onnx").read_bytes(), threads=1), name=package.manifest.name)
            for package in packages
        ]
    tiny = OrtSession(tiny_model().SerializeToString(), threads=1)
    models.append(Model(tiny, name="tiny", cost=JOINS))
    return App(Repository(models))


PACKAGES = {"identity": identity_package, "scaled": scaled_package, "words": words_package}


def mutated(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4))):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.randint(0, 12))
        piece = rng.choice((rng.choice(TOKENS), rng.randbytes(rng.randint(0, 6)), data[at:end] * 2, b""))
        data = data[:at] + piece + data[end:]
    return data


def steady(rng: random.Random) -> bytes:
    """A request as a steady client sends it, which is what the server remembers."""
    x = np.array([[rng.random() for _ in range(4)]], np.float32)
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    lines = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + 16}\r\n\r\n"
    return b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\n" + lines.encode() + head + x.tobytes()


def answers(received: bytes) -> tuple[list[tuple[int, bytes]], str]:
    """Status and body of each answer, and what is wrong with them."""
    out, at = [], 0
    while at < len(received):
        end = received.find(b"\r\n\r\n", at)
        head = received[at:end]
        if end < 0 or not head.startswith(b"HTTP/1.1 "):
            return out, f"not an answer: {received[at : at + 200]!r}"
        status, found = int(head[9:12]), re.search(rb"\r\nContent-Length: (\d+)", head)
        at = end + 4
        if status == 100:
            continue
        size = int(found.group(1)) if found else 0
        out.append((status, received[at : at + size]))
        if b"Traceback" in received[at : at + size]:
            return out, "a traceback"
        at += size
    return out, "" if at == len(received) else "a cut answer"


class Side:
    """One door, and what it answers to a conversation."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop, *, remembers: bool) -> None:
        routes = Routes(app, post=loop.call_soon_threadsafe, max_body_bytes=1 << 20, shortcuts=True)
        self.door = Door(routes.handle, limits=Limits(body_bytes=1 << 20, pipelined=64), loop=loop)
        if not remembers:
            self.door.heads = Forgetful()

    async def answer(self, pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], str]:
        wire: Any = Wire()
        connection = self.door()
        connection.connection_made(wire)
        for piece in pieces:
            if piece and not wire.closed:
                connection.data_received(piece)
                await asyncio.sleep(0)
        for turn in range(2000):
            if connection._answering is None and not connection._ready:
                break
            await asyncio.sleep(0.001 if turn > 20 else 0)
        else:
            return [], "no answer came"
        if not wire.closed:
            connection.eof_received()
        connection.connection_lost(None)
        out, wrong = answers(bytes(wire.data))
        if self.door.buffered or self.door.connections:
            wrong = wrong or f"{self.door.buffered} bytes, {len(self.door.connections)} connections held"
            self.door.buffered = 0
        bad = [status for status, _ in out if status >= 500]
        return out, wrong or (f"answered {bad}: {out}" if bad else "")


async def fuzz(requests: int, seed: int, logged: list[str]) -> int:
    """Faults found."""
    rng, loop, faults, sent, conversations = random.Random(seed), asyncio.get_running_loop(), 0, 0, 0
    tally: Counter[int] = Counter()
    app = app_of()
    app.soon, app.later = loop.call_soon, loop.call_later
    whole, cut = Side(app, loop, remembers=True), Side(app, loop, remembers=False)
    begun = time.perf_counter()
    while sent < requests:
        count = rng.choice((1, 1, 1, 2, 3))
        parts = [steady(rng) if rng.random() < 0.4 else mutated(rng, rng.choice(SEEDS)) for _ in range(count)]
        data = b"".join(parts)
        at = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 3)))
        first, wrong = await whole.answer(parts if rng.random() < 0.5 else [data])
        second, other = await cut.answer([data[a:b] for a, b in zip([0, *at], [*at, len(data)])])
        wrong = wrong or other or "; ".join(logged)
        if not wrong and b"stat" not in data and b"metrics" not in data and not _same(first, second):
            wrong = f"not alike: {first} and {second}"
        if wrong:
            faults += 1
            logged.clear()
            if faults <= 5:
                print(f"{wrong[:600]}\n  {data!r}", file=sys.stderr)
        tally.update(status for status, _ in first)
        sent, conversations = sent + 2 * count, conversations + 1
    took = time.perf_counter() - begun
    print(f"{sent} requests in {conversations} conversations, each in two ways, {took:.0f} s: {faults} faults")
    print("answers: " + ", ".join(f"{number} times {status}" for status, number in sorted(tally.items())))
    for name, data in SMUGGLING.items():
        for side in (whole, cut):
            out, wrong = await side.answer([data + HIDDEN])
            split, other = await side.answer([data[:-3], data[-3:] + HIDDEN])
            for found in (out, split):
                if len(found) != 1 or found[0][0] not in (400, 413, 505) or wrong or other:
                    faults += 1
                    print(f"not refused: {name}: {found} {wrong or other}", file=sys.stderr)
                    break
    print(f"{len(SMUGGLING)} cases of smuggling")
    app.close()
    return faults


def _same(first: list[tuple[int, bytes]], second: list[tuple[int, bytes]]) -> bool:
    """Alike but for the words of a refusal, which say how far the parser had come."""
    return [(s, b if s < 400 else b"") for s, b in first] == [(s, b if s < 400 else b"") for s, b in second]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gather", action="store_true", help="all that repeat wait for the end of their turn")
    args = parser.parse_args()
    if args.gather:
        turn_batch.COMPANY = 0.0
    logged = errors_logged()
    faults = asyncio.run(fuzz(args.requests, args.seed, logged))
    print(f"{faults} faults")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
