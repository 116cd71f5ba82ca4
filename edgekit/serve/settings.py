"""What can be set while the server runs: traces of single requests, and how much is logged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from edgekit.errors import InputError, UsageError
from edgekit.serve.messages import InferRequest, RequestError
from edgekit.serve.model import Model
from edgekit.serve.worker import Outcome

if TYPE_CHECKING:
    from edgekit.serve.spans import Spans

TRACES = logging.getLogger("edgekit.serve.trace")
REQUESTS = logging.getLogger("edgekit.serve.requests")

_LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")


class _Trace(msgspec.Struct):
    level: str = "OFF"
    rate: int = 1000
    count: int = -1
    seen: int = 0


class TraceSettings:
    """Which requests leave a trace: one line of JSON with the times of its stages, in the protocol's names.

    `file` is where; None for the log. It is set when the server starts, not by clients: they name no files here.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Raises UsageError: the file cannot be written."""
        self._all = _Trace()
        self._own: dict[str, _Trace] = {}
        self._next_id = 1
        self._path = file
        self._stream: IO[bytes] | None = None
        self._lock = threading.Lock()
        self.spans: Spans | None = None
        self.active = False
        if file is not None:
            try:
                self._stream = file.open("ab")
            except OSError as error:
                raise UsageError(f"Trace file '{file}' cannot be written ({error.strerror}).") from error

    def document(self, model: str = "") -> dict[str, Any]:
        """The settings of `model`, or those of all."""
        trace = self._own.get(model, self._all)
        return {
            "trace_file": "" if self._path is None else self._path.name,
            "trace_level": [trace.level],
            "trace_rate": str(trace.rate),
            "trace_count": str(trace.count),
            "log_frequency": "0",
            "trace_mode": "edgekit",
        }

    def change(self, values: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Set what `values` name, for `model` or for all; null sets back. Returns the new settings.

        Raises:
            InputError: no such setting, or not a value of it.
            RequestError: it is not set by clients (403).
        """
        trace = msgspec.structs.replace(self._own.get(model, self._all), seen=0)
        for name, value in values.items():
            match name:
                case "trace_level":
                    trace.level = _level(value)
                case "trace_rate":
                    trace.rate = _number(name, value, 1000, least=1)
                case "trace_count":
                    trace.count = _number(name, value, -1, least=-1)
                case "trace_file" | "trace_mode" | "log_frequency":
                    raise RequestError(403, f"Setting {name} is not changed by clients of this server.")
                case _:
                    raise InputError(
                        f"There is no trace setting '{name}'; expected trace_level, trace_rate, trace_count."
                    )
        if model:
            self._own[model] = trace
        else:
            self._all = trace
        wanted = any(t.level != "OFF" and t.count != 0 for t in (self._all, *self._own.values()))
        self.active = wanted or self.spans is not None
        return self.document(model)

    def record(self, model: Model, request: InferRequest, outcome: Outcome, started_ns: int, ended_ns: int) -> None:
        """Leave a trace of an answered request, if it is one of those."""
        if self.spans is not None:
            self.spans.answered(model, request, outcome, started_ns, ended_ns)
        trace = self._own.get(model.name, self._all)
        if trace.level == "OFF" or trace.count == 0:
            return
        trace.seen += 1
        if (trace.seen - 1) % trace.rate:
            return
        if trace.count > 0:
            trace.count -= 1
        split_ns = ended_ns - outcome.split_ns
        ran_ns = split_ns - outcome.run_ns
        begun_ns = ran_ns - outcome.join_ns
        times = {
            "REQUEST_START": started_ns,
            "QUEUE_START": begun_ns - outcome.queue_ns,
            "COMPUTE_START": begun_ns,
            "COMPUTE_INPUT_END": ran_ns,
            "COMPUTE_OUTPUT_START": split_ns,
            "COMPUTE_END": ended_ns,
            "REQUEST_END": ended_ns,
        }
        document: dict[str, Any] = {
            "id": self._next_id,
            "model_name": model.name,
            "model_version": model.version,
            "request_id": _name_of(request),
            "rows_in_run": outcome.rows or model.rows_of(request.feed),
            "timestamps": [{"name": name, "ns": ns} for name, ns in times.items()],
        }
        if trace.level == "TENSORS":
            document["inputs"] = [{"name": n, "dtype": str(v.dtype), "shape": v.shape} for n, v in request.feed.items()]
        self._next_id += 1
        line = msgspec.json.encode(document)
        if self._stream is None:
            TRACES.info("%s", line.decode())
        else:
            with self._lock:
                self._stream.write(line + b"\n")
                self._stream.flush()

    def send_to(self, spans: Spans) -> None:
        """Make spans of all requests too."""
        self.spans, self.active = spans, True

    def failed(self, model: Model, request: InferRequest, error: Exception, started_ns: int, ended_ns: int) -> None:
        """Leave a span of a request that was answered with an error."""
        if self.spans is not None:
            self.spans.failed(model, request, error, started_ns, ended_ns)

    def close(self) -> None:
        """Close the file, and send the spans that are left."""
        if self.spans is not None:
            self.spans.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class LogSettings:
    """How much of each request is logged, under the protocol's names for it. `verbose` logs a line a request."""

    def __init__(self, *, verbose: int = 0) -> None:
        self._values: dict[str, Any] = {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": verbose,
            "log_format": "default",
        }
        self.verbose = verbose > 0

    def document(self) -> dict[str, Any]:
        """The settings."""
        return dict(self._values)

    def change(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set what `values` name. Returns the new settings.

        Raises:
            InputError: no such setting, or not a value of it.
            RequestError: it is not set by clients (403).
        """
        new = dict(self._values)
        for name, value in values.items():
            if name in ("log_file", "log_format"):
                if value != new[name]:
                    raise RequestError(403, f"Setting {name} is not changed by clients of this server.")
            elif name in ("log_info", "log_warning", "log_error"):
                if not isinstance(value, bool):
                    raise InputError(f"Setting {name} is {value!r}; expected true or false.")
                new[name] = value
            elif name == "log_verbose_level":
                new[name] = _number(name, value, 0, least=0)
            else:
                raise InputError(f"There is no log setting '{name}'; expected one of {', '.join(new)}.")
        self._values = new
        self.verbose = new["log_verbose_level"] > 0
        level = logging.ERROR if new["log_error"] else logging.CRITICAL
        level = logging.WARNING if new["log_warning"] else level
        logging.getLogger("edgekit.serve").setLevel(logging.INFO if new["log_info"] else level)
        return self.document()

    def answered(self, model: Model, request: InferRequest, outcome: Outcome, total_ns: int) -> None:
        """Log an answered request."""
        fields = {
            "request_id": _name_of(request),
            "model": model.name,
            "version": model.version,
            "status": 200,
            "total_us": total_ns // 1000,
            "queue_us": outcome.queue_ns // 1000,
            "run_us": outcome.run_ns // 1000,
            "rows_in_run": outcome.rows or model.rows_of(request.feed),
        }
        REQUESTS.info("%s", _words(fields), extra={"fields": fields})

    def failed(self, model: Model, request: InferRequest, error: Exception, total_ns: int) -> None:
        """Log a request that was answered with an error."""
        fields = {
            "request_id": _name_of(request),
            "model": model.name,
            "version": model.version,
            "error": str(error)[:300],
            "total_us": total_ns // 1000,
        }
        REQUESTS.warning("%s", _words(fields), extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Log records as lines of JSON: time, level, logger, message, the fields of a request, and which `worker`."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._worker,
        }
        fields = getattr(record, "fields", None)
        document |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(document).decode()


def _name_of(request: InferRequest) -> str:
    return (request.id or request.tag)[:128]


def _words(fields: Mapping[str, Any]) -> str:
    """One line, whatever clients put into their names."""
    text = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _level(value: Any) -> str:
    levels = ["OFF"] if value is None or value == [] else [value] if isinstance(value, str) else value
    if not isinstance(levels, (list, tuple)) or not levels or any(level not in _LEVELS for level in levels):
        raise InputError(f"Setting trace_level is {value!r}; expected a list of {', '.join(_LEVELS)}.")
    return str(max(levels, key=_LEVELS.index))


def _number(name: str, value: Any, default: int, *, least: int) -> int:
    if value is None or value == []:
        return default
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    text = str(value)
    if isinstance(value, bool) or not text.removeprefix("-").isdigit() or len(text) > 18 or int(text) < least:
        raise InputError(f"Setting {name} is {value!r}; expected a whole number, {least} or more.")
    return int(text)
