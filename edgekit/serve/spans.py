"""Requests as OpenTelemetry spans: the request, its wait and its run, in the trace of the client that sent it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit._lazy import require

if TYPE_CHECKING:
    from edgekit.serve.messages import InferRequest
    from edgekit.serve.model import Model
    from edgekit.serve.worker import Outcome

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header."""

_WHY = "send traces"


class Spans:
    """Makes spans of answered requests and gives them to `exporter`, from a thread of its own.

    Without `exporter` they go where the standard variables say (OTEL_EXPORTER_OTLP_ENDPOINT, …), by HTTP. A request
    with a traceparent is part of that trace, and left out if its client does not sample it; OTEL_TRACES_SAMPLER
    decides on the others.
    """

    def __init__(self, exporter: Any = None) -> None:
        """Raises MissingDependencyError without the OpenTelemetry SDK."""
        trace = require("opentelemetry.sdk.trace", why=_WHY)
        export = require("opentelemetry.sdk.trace.export", why=_WHY)
        resources = require("opentelemetry.sdk.resources", why=_WHY)
        if exporter is None:
            exporter = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", why=_WHY).OTLPSpanExporter()
        about = {"service.name": "edgekit", "service.version": edgekit.__version__}
        resource = resources.Resource.create().merge(resources.Resource(about))
        own = resources.OTELResourceDetector().detect()  # what the environment says wins over ours
        self._provider = trace.TracerProvider(resource=resource.merge(own), shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("edgekit.serve", edgekit.__version__)
        self._api = require("opentelemetry.trace", why=_WHY)

    def answered(self, model: Model, request: InferRequest, outcome: Outcome, started_ns: int, ended_ns: int) -> None:
        """Spans of a request that was answered; times are of `time.perf_counter_ns`."""
        to_unix_ns = time.time_ns() - time.perf_counter_ns()
        span = self._begin(model, request, started_ns + to_unix_ns)
        if not span.is_recording():
            return
        ran_ns = ended_ns - outcome.split_ns
        begun_ns = ran_ns - outcome.run_ns - outcome.join_ns
        parent = self._api.set_span_in_context(span)
        for name, first_ns, last_ns in (
            ("queue", begun_ns - outcome.queue_ns, begun_ns),
            ("compute", begun_ns, ended_ns),
        ):
            child = self._tracer.start_span(name, parent, start_time=first_ns + to_unix_ns)
            if name == "compute":
                child.set_attribute("edgekit.rows_in_run", outcome.rows or model.rows_of(request.feed))
                child.set_attribute("edgekit.variant", model.session.variant)
            child.end(last_ns + to_unix_ns)
        span.end(ended_ns + to_unix_ns)

    def failed(self, model: Model, request: InferRequest, error: Exception, started_ns: int, ended_ns: int) -> None:
        """The span of a request that was answered with an error."""
        to_unix_ns = time.time_ns() - time.perf_counter_ns()
        span = self._begin(model, request, started_ns + to_unix_ns)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, str(error)[:300]))
        span.set_attribute("error.type", type(error).__name__)
        span.end(ended_ns + to_unix_ns)

    def _begin(self, model: Model, request: InferRequest, start_ns: int) -> Any:
        attributes = {"edgekit.model": model.name, "edgekit.version": model.version}
        if request.id or request.tag:
            attributes["edgekit.request_id"] = (request.id or request.tag)[:128]
        return self._tracer.start_span(
            f"infer {model.name}",
            self._parent(request.traceparent),
            kind=self._api.SpanKind.SERVER,
            start_time=start_ns,
            attributes=attributes,
        )

    def _parent(self, text: str) -> Any:
        """The context that a traceparent names, or None: then the span begins a trace."""
        found = _PARENT.fullmatch(text)
        if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
            return None
        trace, span = int(found[2], 16), int(found[3], 16)
        if not trace or not span:
            return None
        flags = self._api.TraceFlags(int(found[4], 16))
        context = self._api.SpanContext(trace, span, is_remote=True, trace_flags=flags)
        return self._api.set_span_in_context(self._api.NonRecordingSpan(context))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
