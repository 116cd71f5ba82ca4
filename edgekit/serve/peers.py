"""Workers of one server: what is told to one of them holds for all, and what is asked of one is answered for all.

Each worker listens on a Unix socket in a folder that only their user can enter. A question that is about the whole
server (metrics, statistics) is put to the others as well; a change (a model loaded, a region of shared memory, the log)
is made here first and then there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import InputError
from edgekit.serve.http_messages import Handler, HttpRequest, HttpResponse, Respond, error_response
from edgekit.serve.messages import RequestError
from edgekit.serve.paths import parts_of, path_of

LOGGER = logging.getLogger(__name__)

QUESTION_S = 1.0
CHANGE_S = 120.0
"""How long the other workers may take: for an answer, and for a change such as loading a model."""

_MACHINE_PARTS = ("energy_", "power_", "temperature_", "thermal_headroom", "throttle", "clock_", "load_")
_MACHINE = tuple(f"edgekit_{part}" for part in _MACHINE_PARTS)
"""Metrics of the whole machine, which one worker reports: they carry no worker's number."""

_NAMED = ("# HELP ", "# TYPE ")


@dataclass(frozen=True, slots=True)
class Reply:
    """What another worker answered."""

    slot: int
    status: int
    body: bytes


class Peers:
    """The other workers, as worker `slot` of `count` sees them; `starts`: how often this one was started."""

    def __init__(self, folder: Path, slot: int, count: int, *, starts: int = 1) -> None:
        self.folder, self.slot, self.count, self.starts = folder, slot, count, starts
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def path(self) -> Path:
        """Where this worker listens for the others."""
        return self._path(self.slot)

    def ask_all(
        self, method: str, target: str, body: bytes, then: Callable[[list[Reply]], None], *, timeout_s: float
    ) -> None:
        """Put a question to all others at once, and go on with the answers of those that gave one in time."""

        async def ask() -> None:
            others = [n for n in range(self.count) if n != self.slot]
            replies = await asyncio.gather(*(self._ask(n, method, target, body, timeout_s) for n in others))
            then([r for r in replies if r is not None])

        task = asyncio.get_running_loop().create_task(ask())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def catch_up(self, handle: Handler) -> None:
        """Bring a worker that was started again to where the others are."""
        for slot in range(self.count):
            if slot == self.slot:
                continue
            for target, changes in _LEARNED:
                reply = await self._ask(slot, "POST" if target.endswith("index") else "GET", target, b"", QUESTION_S)
                if reply is None:
                    break
                if reply.status == 200:
                    for change, body in changes(msgspec.json.decode(reply.body)):
                        handle(HttpRequest(b"POST", change.encode(), {}, msgspec.json.encode(body)), _ignored)
            else:
                return

    async def _ask(self, slot: int, method: str, target: str, body: bytes, timeout_s: float) -> Reply | None:
        try:
            return await asyncio.wait_for(self._exchange(slot, method, target, body), timeout_s)
        except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            LOGGER.info("worker %d gave no answer to %s %s: %s", slot, method, target, error or type(error).__name__)
            return None

    async def _exchange(self, slot: int, method: str, target: str, body: bytes) -> Reply:
        reader, writer = await asyncio.open_unix_connection(str(self._path(slot)))
        try:
            head = f"{method} {target} HTTP/1.1\r\nHost: worker\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode("latin-1") + body)
            top = await reader.readuntil(b"\r\n\r\n")
            return Reply(slot, int(top.split(b" ", 2)[1]), await reader.read())
        finally:
            writer.close()

    def _path(self, slot: int) -> Path:
        return self.folder / f"{slot}.sock"


def shared(handle: Handler, peers: Peers) -> Handler:
    """`handle`, with its questions answered and its changes made for all workers."""

    def answer(request: HttpRequest, respond: Respond) -> None:
        if request.target.endswith(b"/infer"):
            handle(request, respond)
            return
        try:
            merge, is_change = _kind(request)
        except InputError as error:
            respond(error_response(error))
            return
        if merge is None and not is_change:
            handle(request, respond)
            return

        def here(own: HttpResponse) -> None:
            if own.status != 200:
                respond(own)
                return
            then = partial(_agreed, own, respond) if merge is None else partial(_merged, merge, peers, own, respond)
            peers.ask_all(
                request.method.decode(),
                request.target.decode("latin-1"),
                request.body,
                then,
                timeout_s=CHANGE_S if is_change else QUESTION_S,
            )

        handle(request, here)

    return answer


_Merge = Callable[[Mapping[int, bytes]], bytes]


def _kind(request: HttpRequest) -> tuple[_Merge | None, bool]:
    """How the answers of all workers are put together, and whether the request changes something in each."""
    parts = parts_of(path_of(request.target))
    if request.method == b"GET":
        if parts == ["", "metrics"]:
            return merge_metrics, False
        if parts[:3] == ["", "v2", "models"] and parts[-1] == "stats":
            return merge_statistics, False
        return None, False
    match parts:
        case ["", "v2", "repository", "models", _, "load" | "unload"]:
            return None, True
        case ["", "v2", "logging"] | ["", "v2", *_, "trace", "setting"]:
            return None, True
        case ["", "v2", "systemsharedmemory" | "cudasharedmemory", *_]:
            return None, True
    return None, False


def _agreed(own: HttpResponse, respond: Respond, replies: Sequence[Reply]) -> None:
    failed = next((r for r in replies if r.status != 200), None)
    respond(own if failed is None else HttpResponse(failed.status, [failed.body]))


def _merged(merge: _Merge, peers: Peers, own: HttpResponse, respond: Respond, replies: Sequence[Reply]) -> None:
    bodies = {peers.slot: b"".join(own.parts)} | {r.slot: r.body for r in replies if r.status == 200}
    try:
        respond(HttpResponse(200, [merge(dict(sorted(bodies.items())))], own.content_type))
    except Exception as error:
        respond(error_response(error))


def merge_metrics(texts: Mapping[int, bytes]) -> bytes:
    """Metrics of several workers as one page: each series with its worker's number.

    Sums are left to who reads them: a worker that was started again begins at 0, which Prometheus understands of a
    series and not of a sum.
    """
    heads: dict[str, dict[str, None]] = {}
    series: dict[str, list[str]] = {}
    for slot, text in texts.items():
        name = ""
        for line in text.decode().splitlines():
            if line.startswith(_NAMED):
                name = line.split(" ", 3)[2]
                heads.setdefault(name, {})[line] = None
            elif line and name:
                series.setdefault(name, []).append(line if name.startswith(_MACHINE) else _with_worker(line, slot))
    lines = [line for name, head in heads.items() for line in (*head, *series.get(name, ()))]
    return ("\n".join(lines) + "\n").encode()


def _with_worker(line: str, slot: int) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f'{name}{{worker="{slot}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{worker="{slot}"}} {value}'


def merge_statistics(documents: Mapping[int, bytes]) -> bytes:
    """The protocol's statistics of several workers, added up."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for text in documents.values():
        add_statistics(models, msgspec.json.decode(text)["model_stats"])
    return msgspec.json.encode({"model_stats": list(models.values())})


def add_statistics(models: dict[tuple[str, str], dict[str, Any]], entries: Iterable[dict[str, Any]]) -> None:
    """Add one worker's entries to `models`, by name and version."""
    for entry in entries:
        key = entry["name"], entry["version"]
        models[key] = _sum(models[key], entry) if key in models else entry


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in one.items():
        more = other[name]
        if name == "batch_stats":
            sizes = {entry["batch_size"]: entry for entry in value}
            for entry in more:
                size = entry["batch_size"]
                sizes[size] = {**_sum(sizes[size], entry), "batch_size": size} if size in sizes else entry
            out[name] = [sizes[size] for size in sorted(sizes)]
        elif isinstance(value, dict):
            out[name] = _sum(value, more)
        elif name == "last_inference":
            out[name] = max(value, more)
        else:
            out[name] = value + more if isinstance(value, int) else value
    return out


def _regions(document: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [(f"/v2/systemsharedmemory/region/{_quoted(r['name'])}/register", r) for r in document]


def _unloaded(document: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    names = [m["name"] for m in document if m["state"] == "UNAVAILABLE" and m["reason"] == "unloaded"]
    return [(f"/v2/repository/models/{_quoted(name)}/unload", {}) for name in names]


def _log(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("/v2/logging", {k: v for k, v in document.items() if k not in ("log_file", "log_format")})]


def _traces(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("/v2/trace/setting", {k: document[k] for k in ("trace_level", "trace_rate", "trace_count")})]


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


_LEARNED: tuple[tuple[str, Callable[[Any], list[tuple[str, Any]]]], ...] = (
    ("/v2/systemsharedmemory/status", _regions),
    ("/v2/repository/index", _unloaded),
    ("/v2/logging", _log),
    ("/v2/trace/setting", _traces),
)
"""What a worker that was started again asks another, and the requests that bring it there."""


def _ignored(response: HttpResponse) -> None:
    if response.status != 200:
        LOGGER.warning("what the other workers know could not be taken over: %s", b"".join(response.parts).decode())


def within(handle: Handler, calls: Callable[[], Mapping[bytes, Any]]) -> Handler:
    """What a worker answers the others: as `handle`, and gRPC's `calls` as POST /grpc/METHOD."""

    def answer(request: HttpRequest, respond: Respond) -> None:
        if not request.target.startswith(b"/grpc/"):
            handle(request, respond)
            return

        def replied(response: bytes | Exception) -> None:
            respond(error_response(response) if isinstance(response, Exception) else HttpResponse(200, [response]))

        try:
            method = calls()[request.target.removeprefix(b"/grpc")]
            if hasattr(method, "ask"):
                method.ask(request.body, replied)
            else:
                replied(method(request.body))
        except Exception as error:
            replied(error)

    return answer


def fault_of(replies: Sequence[Reply]) -> RequestError | None:
    """What another worker had against a change, if one had."""
    for reply in replies:
        if reply.status != 200:
            message = msgspec.json.decode(reply.body).get("error", "") if reply.body else ""
            return RequestError(reply.status, message or f"Worker {reply.slot} did not make the change.")
    return None
