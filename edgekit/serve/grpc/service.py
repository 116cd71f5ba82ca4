"""The calls besides inference: each takes a request message and gives the response message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit._lazy import require
from edgekit.errors import InputError
from edgekit.serve.app import App
from edgekit.serve.grpc.route import INFER, STREAM, Answer
from edgekit.serve.grpc.schema import Method, schema
from edgekit.serve.grpc.status import CallError, Status
from edgekit.serve.messages import RequestError

SERVICE = "inference.GRPCInferenceService"
_HEALTH_SERVICES = ("", SERVICE)


class Service:
    """Answers from an App, in messages."""

    def __init__(self, app: App) -> None:
        self._app = app

    def methods(self) -> dict[bytes, str | Answer]:
        """Every method by its path: INFER, STREAM, or a function of the request's bytes that gives the response's."""
        out: dict[bytes, str | Answer] = {}
        for path, method in schema().methods.items():
            name = path.rpartition(b"/")[2].decode()
            if name == "ModelInfer":
                out[path] = INFER
            elif name == "ModelStreamInfer":
                out[path] = STREAM
            else:
                out[path] = self._answer(method, getattr(self, _snake(name)))
        return out

    def _answer(self, method: Method, question: Callable[[Any], Mapping[str, Any]]) -> Answer:
        """`question` takes the request and gives the response's fields, in the words of the protocol's JSON."""

        def answer(data: Any) -> bytes:
            try:
                request = method.request.FromString(bytes(data))
            except Exception:  # protobuf's own error, whose class depends on its implementation
                raise InputError(f"The message is not a {method.request.DESCRIPTOR.name}.") from None
            return bytes(_filled(method.response(), question(request)).SerializeToString())

        return answer

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

    def _repository_model_load(self, request: Any) -> Mapping[str, Any]:
        raise CallError(
            Status.UNIMPLEMENTED, f"Models are loaded when the server starts; '{request.model_name}' cannot be added."
        )

    def _repository_model_unload(self, request: Any) -> Mapping[str, Any]:
        raise CallError(
            Status.UNIMPLEMENTED, f"Models stay until the server ends; '{request.model_name}' cannot be removed."
        )

    def _system_shared_memory_status(self, request: Any) -> Mapping[str, Any]:
        return {"regions": {r["name"]: r for r in self._app.memory.status(request.name)}}

    def _system_shared_memory_register(self, request: Any) -> Mapping[str, Any]:
        self._app.memory.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    def _system_shared_memory_unregister(self, request: Any) -> Mapping[str, Any]:
        self._app.memory.unregister(request.name)
        return {}

    def _cuda_shared_memory_status(self, request: Any) -> Mapping[str, Any]:
        if request.name:
            raise CallError(Status.NOT_FOUND, f"CUDA shared memory region '{request.name}' is not registered.")
        return {"regions": {}}

    def _cuda_shared_memory_register(self, _request: Any) -> Mapping[str, Any]:
        raise CallError(Status.UNIMPLEMENTED, "This server does not share CUDA memory. Use system shared memory.")

    def _cuda_shared_memory_unregister(self, _request: Any) -> Mapping[str, Any]:
        return {}  # there is none, which is what was asked for

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
