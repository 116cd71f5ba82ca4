"""gRPC's calls that are about a whole server of several workers: see `edgekit.serve.peers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from edgekit.serve.grpc.route import Answer, Later, Method
from edgekit.serve.peers import CHANGE_S, QUESTION_S, Peers, Reply, add_statistics, fault_of

CHANGES = frozenset(
    (
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    )
)

Respond = Callable[["bytes | Exception"], None]


def shared(
    methods: Mapping[bytes, Method], peers: Peers, statistics: Callable[[Any, Any], bytes]
) -> dict[bytes, Method]:
    """`methods`, with changes made in all workers and statistics added up.

    `statistics` makes the response to a request for statistics out of the entries of all workers, which it is given
    in a function that merges them with its own.
    """
    out = dict(methods)
    for path, method in methods.items():
        name = path.rpartition(b"/")[2].decode()
        if name in CHANGES and not isinstance(method, str):
            out[path] = Later(partial(_change, peers, path.decode(), method))
        elif name == "ModelStatistics":
            out[path] = Later(partial(_statistics, peers, statistics))
    return out


def _change(peers: Peers, path: str, method: Answer | Later, data: Any, respond: Respond) -> None:
    def here(own: bytes | Exception) -> None:
        if isinstance(own, Exception):
            respond(own)
            return

        def there(replies: list[Reply]) -> None:
            respond(fault_of(replies) or own)

        peers.ask_all("POST", f"/grpc{path}", bytes(data), there, timeout_s=CHANGE_S)

    if isinstance(method, Later):
        method.ask(data, here)
    else:
        here(method(data))


def _statistics(peers: Peers, statistics: Callable[[Any, Any], bytes], data: Any, respond: Respond) -> None:
    request = bytes(data)

    def there(replies: list[Reply]) -> None:
        def merged(own: Mapping[str, Any]) -> Mapping[str, Any]:
            models: dict[tuple[str, str], dict[str, Any]] = {}
            for entries in (own["model_stats"], *(_entries(r) for r in replies if r.status == 200)):
                add_statistics(models, entries)
            wanted = {(m["name"], m["version"]) for m in own["model_stats"]}
            return {"model_stats": [m for key, m in models.items() if key in wanted]}

        try:
            respond(statistics(request, merged))
        except Exception as error:
            respond(error)

    peers.ask_all("GET", "/v2/models/stats", b"", there, timeout_s=QUESTION_S)


def _entries(reply: Reply) -> list[dict[str, Any]]:
    return list(msgspec.json.decode(reply.body)["model_stats"])
