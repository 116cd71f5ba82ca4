"""Damaged gRPC at speed: mutated frames and messages straight into the door, no socket between.

    python benchmarks/fuzz_grpc.py [--messages 200000] [--seed 0] [--gather]

A run counts as clean if no call ended with INTERNAL or UNKNOWN, no connection with INTERNAL_ERROR, nothing was logged
as an error, and every byte that was counted as held is let go of when its connection ends.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hpack
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.runtime.ort import OrtSession
from edgekit.serve import turn_batch
from edgekit.serve.app import App
from edgekit.serve.grpc.door import GrpcDoor
from edgekit.serve.h2 import frames as h2
from edgekit.serve.h2.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from edgekit.serve.warmup import Cost
from tests.serve import test_grpc_fuzz as seeds
from tests.serve.h2_client import framed, infer_message
from tests.tiny import tiny_model

BAD = ("2", "13")


class Wire:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, parts: list[bytes]) -> None:
        self.data += b"".join(parts)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def mutated(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.randint(0, 12))
        piece = rng.choice([rng.randbytes(rng.randint(0, 6)), data[at:end] * 2, b"", b"\xff" * 10, b"\x3a", b"\0"])
        data = data[:at] + piece + data[end:]
    return data


def conversation(rng: random.Random) -> tuple[bytes, int]:
    """Frames of a few calls, most with mutated messages, sometimes mutated as a whole; and how many messages."""
    parts, count = [h2.PREFACE, h2.settings({}), h2.frame(h2.SETTINGS, h2.ACK, 0)], rng.randint(1, 8)
    for k in range(count):
        stream = 2 * k + 1
        if rng.random() < 0.4:  # as a steady client sends it, which is what the server remembers
            x = np.array([[rng.random() for _ in range(4)]], np.float32)
            parts.append(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, seeds.block(seeds.PATH + "ModelInfer")))
            parts.append(h2.frame(h2.DATA, h2.END_STREAM, stream, infer_message(x)))
            continue
        block = rng.choice(seeds.BLOCKS) if rng.random() < 0.3 else seeds.block(seeds.PATH + "ModelInfer")
        if rng.random() < 0.2:
            block = seeds.block(seeds.PATH + "ModelStreamInfer")
        body = framed(mutated(rng, rng.choice(seeds.SEEDS)))
        cut = rng.randint(0, len(body))
        pieces = [
            h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block),
            h2.frame(h2.DATA, 0, stream, body[:cut]),
            h2.frame(h2.DATA, rng.choice([0, 1, 1, 1]), stream, body[cut:]),
        ]
        if rng.random() < 0.3:
            kind, number = rng.randint(0, 11), rng.choice([0, 1, stream, stream + 2])
            pieces.insert(rng.randint(0, 3), h2.frame(kind, rng.choice([0, 1, 4, 8, 255]), number, rng.randbytes(8)))
        parts += pieces
    data = b"".join(parts)
    return (mutated(rng, data) if rng.random() < 0.2 else data), count


def judge(received: bytes, tally: Counter[str]) -> str:
    """What is wrong with the server's side of a conversation; nothing if it is well. `tally` counts how calls ended."""
    at, decoder = 0, hpack.Decoder()
    while len(received) - at >= 9:
        high, low, kind, _, _ = h2.unpack_head(received, at)
        size = high << 8 | low
        payload, at = received[at + 9 : at + 9 + size], at + 9 + size
        if kind == h2.HEADERS:
            status = dict(decoder.decode(payload)).get("grpc-status")
            tally[f"status {status}"] += status is not None
            if status in BAD:
                return f"status {decoder.decode(payload)}"
        if kind == h2.GOAWAY:
            code = int.from_bytes(payload[4:8], "big")
            tally[f"GOAWAY {code}"] += 1
            if code == h2.Code.INTERNAL_ERROR:
                return f"GOAWAY {payload!r}"
    return "" if at == len(received) else "a cut frame"


def errors_logged() -> list[str]:
    """What edgekit logs as an error from now on."""
    logged: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    logging.getLogger("edgekit").addHandler(Listen(logging.ERROR))
    return logged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gather", action="store_true", help="all that repeat wait for the end of their turn")
    args = parser.parse_args()
    if args.gather:
        turn_batch.COMPANY = 0.0
    logged = errors_logged()
    session = OrtSession(tiny_model().SerializeToString(), threads=1)
    app = App(Repository([Model(session, name="tiny", cost=Cost(1e-5, 16, ((32, 1e-5), (64, 1e-5))))]))
    rng, sent, conversations, begun = random.Random(args.seed), 0, 0, time.perf_counter()
    faults: list[tuple[str, bytes]] = []
    tally: Counter[str] = Counter()

    async def run() -> None:
        nonlocal sent, conversations
        loop = asyncio.get_running_loop()
        app.soon = loop.call_soon
        door = GrpcDoor(app, limits=Limits(), loop=loop, post=loop.call_soon_threadsafe)
        while sent < args.messages:
            data, count = conversation(rng)
            wire: Any = Wire()
            connection = door()
            connection.connection_made(wire)
            cut = rng.randint(0, len(data))
            for piece in (data[:cut], data[cut:]):
                if not wire.closed:
                    connection.data_received(piece)
            await asyncio.sleep(0)
            connection.connection_lost(None)
            wrong = (
                judge(bytes(wire.data), tally)
                or (f"{door.buffered} bytes held" if door.buffered else "")
                or "".join(logged)
            )
            if wrong:
                faults.append((wrong, data))
                door.buffered = 0
                logged.clear()
            sent, conversations = sent + count, conversations + 1

    asyncio.run(run())
    seconds = time.perf_counter() - begun
    print(f"{sent} messages in {conversations} conversations, {seconds:.0f} s: {len(faults)} faults")
    print(", ".join(f"{name}: {number}" for name, number in sorted(tally.items()) if number))
    for wrong, data in faults[:5]:
        print(wrong, data.hex())
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
