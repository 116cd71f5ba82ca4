"""Packages as deployments of Ray Serve: each model scales by itself, and answers as edgekit's own server does.

Every model is an application of its own below /v2/models/NAME, so that Ray's proxy sends its requests to its replicas
without another hop. A replica holds the open package, its queue and its batching, and reads and writes the protocol by
the same code as `edgekit serve`. What is asked of the server as a whole is answered by one small application.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgekit._lazy import require
from edgekit.cluster import first_line, package_here, packed
from edgekit.errors import BackendError, UsageError
from edgekit.package import Package
from edgekit.serve.app import App
from edgekit.serve.http_messages import HttpRequest, HttpResponse, error_response, json_response
from edgekit.serve.library import Library
from edgekit.serve.limits import Limits
from edgekit.serve.messages import RequestError
from edgekit.serve.repository import LOADING, READY, UNAVAILABLE, Repository
from edgekit.serve.routes import Routes
from edgekit.serve.shared_memory import SharedMemory

FRONT = "edgekit"
"""The application that answers for the whole server."""

_USED = frozenset(
    (b"accept-encoding", b"content-encoding", b"content-type", b"inference-header-content-length", b"x-request-id")
)

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "sequence",
)
"""Of the protocol's extensions, those that hold whichever replica answers."""

_OF_THE_SERVER = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index", "/v2/openapi.json")


@dataclass(frozen=True)
class Scaling:
    """How many replicas a model has: as many as keep about `target` requests under way in each."""

    least: int = 1
    most: int = 4
    target: int = 8
    queue: int = 256
    """Requests of one model that may wait at a proxy; more are answered 503."""


class Replica:
    """One copy of one model: a deployment's class."""

    def __init__(self, path: str, digest: str, archive: Sequence[Any], given: Mapping[str, Any]) -> None:
        package = package_here(Path(path), digest, archive)
        models = Library([package.path], given=given).load_all()
        self._app = App(Repository(models), memory=SharedMemory(allowed=False), control=False)
        self._routes: Routes | None = None

    async def __call__(self, request: Any) -> Any:
        """Answer a request of the Open Inference Protocol; `request` and answer are Starlette's."""
        loop = asyncio.get_running_loop()
        if self._routes is None:  # all requests of a replica come on one loop
            limits = Limits()
            self._app.soon, self._app.later = loop.call_soon, loop.call_later
            self._routes = Routes(self._app, post=loop.call_soon_threadsafe, max_body_bytes=limits.body_bytes)
        answer: asyncio.Future[HttpResponse] = loop.create_future()

        def respond(response: HttpResponse) -> None:
            if not answer.done():
                answer.set_result(response)

        try:
            own = await _read(request, limit=Limits.body_bytes)
        except RequestError as error:
            return _written(error_response(error))
        self._routes.handle(own, respond)
        try:
            return _written(await answer)
        except asyncio.CancelledError:
            if own.cancel is not None:  # its client is gone
                own.cancel()
            raise


class Front:
    """What is asked of the server as a whole: a deployment's class. `models` are (name, version)."""

    def __init__(self, models: Sequence[tuple[str, str]]) -> None:
        self._models = tuple(models)
        self._app = App(Repository(()), memory=SharedMemory(allowed=False), control=False)
        self._routes = Routes(self._app, post=lambda call, *given: call(*given), max_body_bytes=1 << 16)

    async def __call__(self, request: Any) -> Any:
        """Answer a request; both are Starlette's."""
        try:
            own = await _read(request, limit=1 << 16)
            path = own.target.decode("latin-1").partition("?")[0]
            if path.startswith("/v2/models/"):
                name, known = path.split("/")[3], ", ".join(n for n, _ in self._models)
                raise RequestError(404, f"Model '{name}' is not served here; the models are {known}.")
            if path not in _OF_THE_SERVER:
                raise RequestError(404, f"Path '{path}' is not one that is answered on Ray.")
            if (own.method, path) == (b"GET", "/v2"):
                return _written(json_response({**self._app.server_metadata(), "extensions": EXTENSIONS}))
            if (own.method, path) in ((b"GET", "/v2/health/ready"), (b"POST", "/v2/repository/index")):
                states = await asyncio.to_thread(_states, [n for n, _ in self._models])
                return _written(self._of_all(path, states))
            answers: list[HttpResponse] = []
            self._routes.handle(own, answers.append)
            return _written(answers[0])
        except RequestError as error:
            return _written(error_response(error))

    def _of_all(self, path: str, states: Mapping[str, str]) -> HttpResponse:
        if path == "/v2/repository/index":
            return json_response([{"name": n, "version": v, "state": states[n], "reason": ""} for n, v in self._models])
        waiting = [n for n, state in states.items() if state != READY]
        if not waiting:
            return HttpResponse(200)
        return json_response({"ready": False, "reason": f"not ready: {', '.join(waiting)}"}, status=503)


def _states(names: Sequence[str]) -> dict[str, str]:
    """The state of each model as the protocol says it."""
    from ray import serve

    found = serve.status().applications
    words = {"RUNNING": READY, "DEPLOYING": LOADING, "NOT_STARTED": LOADING}
    return {n: words.get(found[n].status.value, UNAVAILABLE) if n in found else UNAVAILABLE for n in names}


async def _read(request: Any, *, limit: int) -> HttpRequest:
    """Starlette's request as the routes take it. Raises RequestError 413: its body is too long."""
    arrived_ns = time.perf_counter_ns()
    scope = request.scope
    path, root = scope["path"], scope.get("root_path", "")
    whole = path if path.startswith(root) else root + path
    target = quote(whole).encode() + (b"?" + scope["query_string"] if scope.get("query_string") else b"")
    headers = {name: value for name, value in scope["headers"] if name in _USED}
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise RequestError(413, f"The body is longer than {limit} bytes.")
    return HttpRequest(scope["method"].encode(), target, headers, bytes(body), arrived_ns=arrived_ns)


def _written(response: HttpResponse) -> Any:
    from starlette.responses import Response

    lines = [line.partition(b": ") for line in response.headers.split(b"\r\n") if line]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, _, value in lines}
    if response.parts:
        headers["content-type"] = response.content_type.decode()
    return Response(b"".join(response.parts), response.status, headers)


class RaySite:
    """Packages served by Ray Serve on the cluster that `ray` is connected to, at `url` once `start` returned."""

    def __init__(self, ray: Any, *, host: str, port: int) -> None:
        self._ray = ray
        self._serve = require("ray.serve", why="serve on Ray")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self.url = f"http://{host}:{port}"
        self._host, self._port = host, port
        self._names: list[str] = []

    def start(
        self, packages: Sequence[Package], *, given: Mapping[str, Any], scaling: Scaling, threads: int | None = None
    ) -> None:
        """Deploy every package, and return once each has a replica that passed its own samples.

        Raises:
            UsageError: two packages have one name.
            BackendError: Ray could not start them.
        """
        names = [p.name for p in packages]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise UsageError(f"Two packages are named '{twice}'; a server tells models apart by name. Leave one out.")
        self._serve.start(http_options={"host": self._host, "port": self._port})
        try:
            for package in packages:
                self._names.append(package.name)
                self._run(package.name, self._application(package, given, scaling, threads), package.name)
            front = self._serve.deployment(Front, name=FRONT, num_replicas=1, ray_actor_options={"num_cpus": 0})
            self._names.append(FRONT)
            self._run(FRONT, front.bind([(p.name, p.manifest.version) for p in packages]), "")
        except (self._ray.exceptions.RayError, RuntimeError, ValueError) as error:
            self.stop()
            raise BackendError(f"Ray could not serve '{self._names[-1]}': {first_line(error)}") from error

    def stop(self) -> None:
        """Take back what `start` deployed; requests under way are answered."""
        for name in self._names:
            self._serve.delete(name)
        self._names = []

    def _run(self, name: str, application: Any, model: str) -> None:
        prefix = f"/v2/models/{model}" if model else "/"
        self._serve.run(application, name=name, route_prefix=prefix, blocking=False)

    def _application(self, package: Package, given: Mapping[str, Any], scaling: Scaling, threads: int | None) -> Any:
        nodes = [n for n in self._ray.nodes() if n["Alive"]]
        gpus = any(n["Resources"].get("GPU", 0) >= 1 for n in nodes)
        archive = [self._ray.put(packed(package))] if len(nodes) > 1 else []
        least, most = (1, 1) if package.manifest.states else (scaling.least, scaling.most)  # sequences stay together
        deployment = self._serve.deployment(
            Replica,
            name=package.name,
            max_ongoing_requests=4 * scaling.target,
            max_queued_requests=scaling.queue,
            ray_actor_options={"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads or 1},
            autoscaling_config={
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": scaling.target,
                "upscale_delay_s": 3,
                "downscale_delay_s": 60,
            },
        )
        own = dict(given) if gpus else {"threads": threads or 1, **given}
        return deployment.bind(str(package.path), package.manifest.digest, archive, own)
