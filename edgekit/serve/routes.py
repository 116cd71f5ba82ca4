"""HTTP's side of the protocol: which method and path asks for what, and which status answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec

from edgekit.errors import InputError
from edgekit.serve.app import App
from edgekit.serve.codec import encode_response, header_length_of
from edgekit.serve.compress import MIN_BYTES, accepted, compress, decompress
from edgekit.serve.cuda_memory import CudaMemory, handle_from_base64
from edgekit.serve.http_messages import (
    BINARY,
    JSON,
    Handler,
    HttpRequest,
    HttpResponse,
    Respond,
    error_response,
    json_response,
)
from edgekit.serve.messages import InferRequest, InferResponse, RequestError
from edgekit.serve.model import Model
from edgekit.serve.options import load_options
from edgekit.serve.paths import parts_of, path_of
from edgekit.serve.repeat import MISSES, watched
from edgekit.serve.shared_memory import SharedMemory
from edgekit.serve.shortcut import binary_header, shortcut_for
from edgekit.serve.worker import Post
from edgekit.tensors import Tensors

_MEDIA = (b"image/", b"audio/")

OFFLOAD_BYTES = 32 << 10
"""Bodies above this are compressed and decompressed on another thread, so that other requests do not wait."""

_CACHED_TARGETS = 1024

T = TypeVar("T")


class Routes:
    """Answers HTTP requests from an App. `post` calls back on the server's thread.

    With `shortcuts`, requests that repeat in all but their tensors do not come here again: nothing may stand before
    these routes that has to see each of them.
    """

    def __init__(self, app: App, *, post: Post, max_body_bytes: int, shortcuts: bool = False) -> None:
        self._app = app
        self._post = post
        self._max_body_bytes = max_body_bytes
        self._shortcuts = shortcuts
        self._handlers: dict[tuple[bytes, bytes], Handler] = {}
        self._pool: ThreadPoolExecutor | None = None

    def handle(self, request: HttpRequest, respond: Respond) -> None:
        """Answer `request`: `respond` is called once, now or later."""
        key = (request.method, request.target)
        handler = self._handlers.get(key)
        try:
            if handler is None:
                handler = self._resolve(request)
                if len(self._handlers) >= _CACHED_TARGETS:
                    self._handlers.clear()
                self._handlers[key] = handler
            handler(request, respond)
        except Exception as error:
            respond(error_response(error))

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _resolve(self, request: HttpRequest) -> Handler:
        path = path_of(request.target)
        methods = self._at(path)
        if methods is None:
            raise RequestError(404, f"Path '{path}' is not one that this server answers.")
        method = "GET" if request.method == b"HEAD" else request.method.decode()
        if method not in methods:
            allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
            return _always(
                json_response(
                    {"error": f"Path '{path}' does not take {method}; it takes {allowed}."},
                    status=405,
                    headers=b"Allow: %b\r\n" % allowed.encode(),
                )
            )
        return methods[method]

    def _at(self, path: str) -> dict[str, Handler] | None:
        """The methods of `path` with their handlers, or None if there is no such path."""
        app = self._app
        match parts_of(path):
            case ["", "v2"]:
                return {"GET": _document(app.server_metadata)}
            case ["", "v2", "openapi.json"]:
                from edgekit.serve.openapi import document

                return {"GET": _document(document)}
            case ["", "v2", "health", "live"]:
                return {"GET": lambda _request, respond: respond(HttpResponse(200))}
            case ["", "v2", "health", "ready"]:
                return {"GET": self._ready}
            case ["", "v2", "repository", "index"]:
                return {"POST": self._index}
            case ["", "v2", "repository", "models", name, "load" | "unload" as what] if name:
                return {"POST": partial(self._load if what == "load" else self._unload, name)}
            case ["", "v2", "logging"]:
                return {"GET": _document(app.logs.document), "POST": _change(app.logs.change)}
            case ["", "v2", "trace", "setting"]:
                return {"GET": _document(app.traces.document), "POST": _change(app.traces.change)}
            case ["", "v2", "systemsharedmemory", *rest]:
                return _of_memory(app.memory, rest)
            case ["", "v2", "cudasharedmemory", *rest]:
                return _of_memory(app.memory.cuda, rest)
            case ["", "" | "page.js" | "page.css" as name]:
                from edgekit.serve.page import page_file

                return {"GET": page_file(name)}
            case ["", "metrics"]:
                return {"GET": self._metrics}
            case ["", "v2", "models", "stats"]:
                return {"GET": _document(app.statistics)}
            case ["", "v2", "models", name, "versions", version, *rest] if name and version:
                return self._of_model(name, version, rest)
            case ["", "v2", "models", name, *rest] if name:
                return self._of_model(name, "", rest)
        return None

    def _of_model(self, name: str, version: str, rest: list[str]) -> dict[str, Handler] | None:
        app = self._app
        match rest:
            case []:
                return {"GET": _document(partial(app.model_metadata, name, version))}
            case ["ready"]:
                return {"GET": partial(self._model_ready, name, version)}
            case ["config"]:
                return {"GET": _document(partial(app.model_config, name, version))}
            case ["stats"]:
                return {"GET": _document(partial(app.statistics, name, version))}
            case ["sample"]:
                return {"GET": partial(self._sample, name, version)}
            case ["infer"]:
                return {"POST": partial(self._infer, name, version)}
            case ["trace", "setting"]:
                app.repository.find(name, version)
                change = partial(app.traces.change, model=name)
                return {"GET": _document(partial(app.traces.document, name)), "POST": _change(change)}
        return None

    def _ready(self, _request: HttpRequest, respond: Respond) -> None:
        reason = self._app.unready
        respond(json_response({"ready": False, "reason": reason}, status=503) if reason else HttpResponse(200))

    def _model_ready(self, name: str, version: str, _request: HttpRequest, respond: Respond) -> None:
        try:
            self._app.repository.find(name, version)
        except RequestError as error:
            raise RequestError(400, str(error)) from None  # 400 is what the protocol's clients expect here
        respond(HttpResponse(200))

    def _sample(self, name: str, version: str, _request: HttpRequest, respond: Respond) -> None:
        from edgekit.serve.page import sample_request

        model = self._app.repository.find(name, version)
        self._offload(lambda: json_response(sample_request(model)), respond, respond)

    def _index(self, request: HttpRequest, respond: Respond) -> None:
        ready_only = False
        if request.body:
            try:
                ready_only = msgspec.json.decode(request.body, type=_IndexRequest).ready
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"The request is not a repository index request in JSON: {error}.") from None
        respond(json_response(self._app.repository_index(ready_only=ready_only)))

    def _metrics(self, _request: HttpRequest, respond: Respond) -> None:
        from edgekit.serve.metrics import METRICS_TYPE, exposition

        respond(HttpResponse(200, [exposition(self._app)], METRICS_TYPE))

    def _load(self, name: str, request: HttpRequest, respond: Respond) -> None:
        self._app.load(name, load_options(_parameters(request.body)), _done(respond))

    def _unload(self, name: str, request: HttpRequest, respond: Respond) -> None:
        dependents = _parameters(request.body).get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InputError(f"Parameter unload_dependents is {dependents!r}; expected true or false.")
        self._app.unload(name, _done(respond), dependents=dependents)

    def _infer(self, name: str, version: str, request: HttpRequest, respond: Respond) -> None:
        model = self._app.repository.find(name, version)
        headers = request.headers
        kind = headers.get(b"content-type")
        if kind is not None and kind.lstrip()[:6].lower() in _MEDIA:
            self._infer_file(model, kind, request, respond)
            return
        length = headers.get(b"inference-header-content-length")
        header_length = None if length is None else header_length_of(length)
        inference: InferRequest | None = None

        def start(body: bytes) -> None:
            nonlocal inference
            inference = model.reader.read(body, header_length)
            tag = headers.get(b"x-request-id")
            if tag is not None:
                inference.tag = tag.decode("latin-1")
            parent = headers.get(b"traceparent")
            if parent is not None:
                inference.traceparent = parent.decode("latin-1")
            arrived_ns = request.arrived_ns or time.perf_counter_ns()
            request.cancel = self._app.infer(model, inference, answer, self._post, arrived_ns)

        def answer(result: InferResponse | Exception) -> None:
            try:
                if isinstance(result, Exception):
                    respond(error_response(result))
                else:
                    self._send(result, headers.get(b"accept-encoding"), respond)
                    if self._shortcuts and inference is not None:
                        self._learn(model, request, inference, result)
            except Exception as error:
                respond(error_response(error))

        encoding = headers.get(b"content-encoding", b"")
        if not encoding:
            start(request.body)
            return
        name = encoding.decode("latin-1").strip().lower()
        decode = partial(decompress, request.body, name, max_bytes=self._max_body_bytes)
        if len(request.body) < OFFLOAD_BYTES:
            start(decode())
        else:
            self._offload(decode, start, respond)

    def _learn(self, model: Model, request: HttpRequest, asked: InferRequest, result: InferResponse) -> None:
        known = request.known
        if known is not None and known.misses < MISSES and not watched(self._app):
            known.repeating = shortcut_for(self._app, model, self._post, request, asked, result)
            known.misses += known.repeating is None

    def _infer_file(self, model: Model, kind: bytes, request: HttpRequest, respond: Respond) -> None:
        """A picture or a recording as the body: answered in labels, `?top=N` of them."""
        from edgekit.serve.media import MediaRun, document_of, rows_of  # with it come decoders, which most do not need

        top = _top_of(request.target)

        def answer(result: Tensors | Exception) -> None:
            try:
                if isinstance(result, Exception):
                    respond(error_response(result))
                else:
                    respond(json_response(document_of(model, result, top=top)))
            except Exception as error:
                respond(error_response(error))

        def start(feed: Tensors) -> None:
            MediaRun(self._app, model, feed, answer, self._post).start(request.arrived_ns or time.perf_counter_ns())

        self._offload(partial(rows_of, model, kind, request.body), start, respond)

    def _send(self, result: InferResponse, accept: bytes | None, respond: Respond) -> None:
        parts, header_length = encode_response(result)
        headers = binary_header(header_length)
        if result.energy is not None:
            joules, source = result.energy
            headers += b"x-energy-joules: %.6g\r\nx-energy-source: %b\r\n" % (joules, source.encode())
        content_type = JSON if header_length is None else BINARY
        encoding = accepted(accept.decode("latin-1")) if accept else ""
        size = sum(map(len, parts)) if encoding else 0
        if not encoding or size < MIN_BYTES:
            respond(HttpResponse(200, parts, content_type, headers))
            return
        headers += b"Content-Encoding: %b\r\nVary: Accept-Encoding\r\n" % encoding.encode()

        def finish(body: bytes) -> None:
            respond(HttpResponse(200, [body], content_type, headers))

        if size < OFFLOAD_BYTES:
            finish(compress(parts, encoding))
        else:
            self._offload(partial(compress, parts, encoding), finish, respond)

    def _offload(self, work: Callable[[], T], then: Callable[[T], None], respond: Respond) -> None:
        """Do `work` on another thread, and `then` go on with its result on the server's own."""

        def arrive(future: Future[T]) -> None:
            try:
                then(future.result())
            except Exception as error:
                respond(error_response(error))

        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekit-coding")
        self._pool.submit(work).add_done_callback(partial(self._post, arrive))


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _ControlRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


def _parameters(body: bytes) -> dict[str, Any]:
    """The parameters of a request to load or unload. Raises InputError."""
    try:
        return msgspec.json.decode(body, type=_ControlRequest).parameters if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"The request is not a repository request in JSON: {error}.") from None


def _done(respond: Respond) -> Callable[[Exception | None], None]:
    return lambda error: respond(HttpResponse(200) if error is None else error_response(error))


class _RegisterRequest(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _RawHandle(msgspec.Struct):
    b64: str


class _RegisterCudaRequest(msgspec.Struct):
    raw_handle: _RawHandle
    byte_size: int
    device_id: int = 0


def _of_memory(memory: SharedMemory | CudaMemory, rest: list[str]) -> dict[str, Handler] | None:
    """Shared memory: its status, and regions that come and go."""
    name = rest[1] if len(rest) == 3 and rest[0] == "region" else ""
    if len(rest) != 1 and not name:
        return None
    match rest[-1]:
        case "status":
            return {"GET": _document(partial(memory.status, name))}
        case "unregister":
            return {"POST": _document(partial(memory.unregister, name))}
        case "register" if name:
            return {"POST": partial(_register, memory, name)}
    return None


def _register(memory: SharedMemory | CudaMemory, name: str, request: HttpRequest, respond: Respond) -> None:
    kind: Any = _RegisterCudaRequest if isinstance(memory, CudaMemory) else _RegisterRequest
    try:
        region = msgspec.json.decode(request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"The request does not describe a shared memory region in JSON: {error}.") from None
    if isinstance(memory, CudaMemory):
        memory.register(name, handle_from_base64(region.raw_handle.b64), region.device_id, region.byte_size)
    else:
        memory.register(name, region.key, region.offset, region.byte_size)
    respond(HttpResponse(200))


def _change(change: Callable[[Mapping[str, Any]], Any]) -> Handler:
    def handler(request: HttpRequest, respond: Respond) -> None:
        try:
            values = msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"The request is not a JSON object of settings: {error}.") from None
        respond(json_response(change(values)))

    return handler


def _top_of(target: bytes) -> int:
    """The `top` of a target's query. Raises InputError unless it is a number of classes."""
    try:
        query = parse_qs(target.partition(b"?")[2].decode("latin-1"), max_num_fields=16)
    except ValueError:
        raise InputError("The query has more than 16 fields; expected top alone.") from None
    text = query.get("top", ["5"])[-1]
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100_000:
        raise InputError(f"Query top is '{text[:20]}'; expected a number of classes.")
    return int(text[:9])


def _always(response: HttpResponse) -> Handler:
    return lambda _request, respond: respond(response)


def _document(question: Callable[[], Any]) -> Handler:
    return lambda _request, respond: respond(json_response(question()))
