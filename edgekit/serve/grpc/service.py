"""The calls besides inference: each takes a request message and gives the response message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from edgekit._lazy import require
from edgekit.errors import InputError
from edgekit.serve.app import App
from edgekit.serve.grpc import schema as schemas
from edgekit.serve.grpc.route import INFER, STREAM, Answer, Later, Method
from edgekit.serve.grpc.status import CallError, Status
from edgekit.serve.messages import RequestError
from edgekit.serve.options import load_options

if TYPE_CHECKING:
    from edgekit.serve.peers import Peers

Question: TypeAlias = Callable[[Any], Mapping[str, Any]]

SERVICE = "inference.GRPCInferenceService"
_HEALTH_SERVICES = ("", SERVICE)


class Service:
    """Answers from an App, in messages."""

    def __init__(self, app: App) -> None:
        self._app, self._cuda = app, app.memory.cuda

    def methods(self, peers: Peers | None = None) -> dict[bytes, Method]:
        """Every method by its path: INFER, STREAM, or a function of the request's bytes that gives the response's.

        With `peers`, those that are about the whole server hold for all workers.
        """
        out: dict[bytes, Method] = {}
        for path, method in schemas.schema().methods.items():
            name = path.rpartition(b"/")[2].decode()
            if name == "ModelInfer":
                out[path] = INFER
            elif name == "ModelStreamInfer":
                out[path] = STREAM
            elif name in ("RepositoryModelLoad", "RepositoryModelUnload"):
                out[path] = self._later(method, getattr(self, _snake(name)))
            else:
                out[path] = self._answer(method, getattr(self, _snake(name)))
        if peers is None:
            return out
        from edgekit.serve.grpc.shared import shared

        return shared(out, peers, self._all_statistics)

    def _all_statistics(self, data: bytes, merged: Question) -> bytes:
        method = schemas.schema().methods[b"/%b/ModelStatistics" % SERVICE.encode()]
        own = self._model_statistics(_parsed(method, data))
        return bytes(_filled(method.response(), merged(own)).SerializeToString())

    def _answer(self, method: schemas.Method, question: Question) -> Answer:
        """`question` takes the request and gives the response's fields, in the words of the protocol's JSON."""

        def answer(data: Any) -> bytes:
            return bytes(_filled(method.response(), question(_parsed(method, data))).SerializeToString())

        return answer

    def _later(self, method: schemas.Method, order: Callable[[Any, Callable[[Exception | None], None]], None]) -> Later:
        """`order` takes the request and calls back when it is carried out; the response says nothing more."""

        def ask(data: Any, respond: Callable[[bytes | Exception], None]) -> None:
            order(_parsed(method, data), lambda error: respond(b"" if error is None else error))

        return Later(ask)

    def _server_live(self, _request: Any) -> Mapping[str, Any]:
        return {"live": True}

    def _server_ready(self, _request: Any) -> Mapping[str, Any]:
        return {"ready": self._app.ready}

    def _model_ready(self, request: Any) -> Mapping[str, Any]:
        try:
            self._app.repository.find(request.name, request.version)
        except RequestError:
            return {"ready": False}
        return {"ready": True}

    def _server_metadata(self, _request: Any) -> Mapping[str, Any]:
        return self._app.server_metadata()

    def _model_metadata(self, request: Any) -> Mapping[str, Any]:
        return self._app.model_metadata(request.name, request.version)

    def _model_config(self, request: Any) -> Mapping[str, Any]:
        return {"config": self._app.model_config(request.name, request.version)}

    def _model_statistics(self, request: Any) -> Mapping[str, Any]:
        return self._app.statistics(request.name, request.version)

    def _repository_index(self, request: Any) -> Mapping[str, Any]:
        return {"models": self._app.repository_index(ready_only=request.ready)}

    def _repository_model_load(self, request: Any, done: Callable[[Exception | None], None]) -> None:
        self._app.load(request.model_name, _load_options(request.parameters), done)

    def _repository_model_unload(self, request: Any, done: Callable[[Exception | None], None]) -> None:
        dependents = request.parameters["unload_dependents"].bool_param if request.parameters else False
        self._app.unload(request.model_name, done, dependents=dependents)

    def _system_shared_memory_status(self, request: Any) -> Mapping[str, Any]:
        return {"regions": {r["name"]: r for r in self._app.memory.status(request.name)}}

    def _system_shared_memory_register(self, request: Any) -> Mapping[str, Any]:
        self._app.memory.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    def _system_shared_memory_unregister(self, request: Any) -> Mapping[str, Any]:
        self._app.memory.unregister(request.name)
        return {}

    def _cuda_shared_memory_status(self, request: Any) -> Mapping[str, Any]:
        return {"regions": {r["name"]: r for r in self._cuda.status(request.name)}}

    def _cuda_shared_memory_register(self, request: Any) -> Mapping[str, Any]:
        self._cuda.register(request.name, request.raw_handle, request.device_id, request.byte_size)
        return {}

    def _cuda_shared_memory_unregister(self, request: Any) -> Mapping[str, Any]:
        self._cuda.unregister(request.name)
        return {}

    def _trace_setting(self, request: Any) -> Mapping[str, Any]:
        traces, model = self._app.traces, request.model_name
        if model:
            self._app.repository.find(model)
        changes = {key: list(setting.value) or None for key, setting in request.settings.items()}
        settings = traces.change(changes, model) if changes else traces.document(model)
        return {"settings": {k: {"value": v if isinstance(v, list) else [v]} for k, v in settings.items()}}

    def _log_settings(self, request: Any) -> Mapping[str, Any]:
        logs, changes = self._app.logs, {}
        for key, setting in request.settings.items():
            chosen = setting.WhichOneof("parameter_choice")
            changes[key] = None if chosen is None else getattr(setting, chosen)
        settings = logs.change(changes) if changes else logs.document()
        return {"settings": {k: {_log_field(v): v} for k, v in settings.items()}}

    def _check(self, request: Any) -> Mapping[str, Any]:
        if request.service not in _HEALTH_SERVICES:
            raise CallError(Status.NOT_FOUND, f"Service '{request.service}' is not served here; there is {SERVICE}.")
        return {"status": "SERVING" if self._app.ready else "NOT_SERVING"}


def _parsed(method: schemas.Method, data: Any) -> Any:
    try:
        return method.request.FromString(bytes(data))
    except Exception:  # protobuf's own error, whose class depends on its implementation
        raise InputError(f"The message is not a {method.request.DESCRIPTOR.name}.") from None


def _load_options(parameters: Any) -> Mapping[str, Any]:
    values = {name: getattr(p, p.WhichOneof("parameter_choice") or "string_param") for name, p in parameters.items()}
    return load_options(values)


def _filled(message: Any, fields: Mapping[str, Any]) -> Any:
    if fields:
        json_format = require("google.protobuf.json_format", why="serve over gRPC")  # inference needs none of it
        json_format.ParseDict(fields, message, ignore_unknown_fields=True)
    return message


def _log_field(value: Any) -> str:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return kinds[type(value)]


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
