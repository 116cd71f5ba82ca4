"""Spans of requests: in the trace of the client, with their wait and their run, sent by OTLP; and nothing when off."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.serve.spans import Spans
from tests.serve.packages import scaled_package
from tests.serve.running import Client, infer_body, tensor
from tests.serve.test_server import fake

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INFER = "/v2/models/net/infer"
BODY = infer_body(tensor("x", [1], [3]), id="seven")


class Kept(list[Any]):
    """An exporter that keeps what it is given."""

    def export(self, spans: Any) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self.extend(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """All is kept already."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def server(kept: Kept) -> Iterator[Server]:
    server = Server([Model(fake(0.02), name="net")], port=0, grpc_port=0)
    server.app.traces.send_to(Spans(kept))
    with server:
        yield server


def by_name(kept: Kept) -> dict[str, Any]:
    return {span.name: span for span in kept}


def test_a_request_is_part_of_its_clients_trace(server: Server, kept: Kept) -> None:
    with Client(server.url) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert client.ask("POST", INFER, BODY, headers).status == 200
    server.__exit__(None, None, None)  # what is left is sent at the end
    spans = by_name(kept)
    assert set(spans) == {"infer net", "queue", "compute"}
    request = spans["infer net"]
    assert {f"{s.context.trace_id:032x}" for s in kept} == {TRACE}
    assert f"{request.parent.span_id:016x}" == PARENT
    assert {spans[n].parent.span_id for n in ("queue", "compute")} == {request.context.span_id}
    assert request.attributes["edgekit.model"] == "net"
    assert request.attributes["edgekit.request_id"] == "seven"
    compute = spans["compute"]
    assert 0.02 <= (compute.end_time - compute.start_time) / 1e9 < 0.5
    assert request.start_time <= spans["queue"].start_time <= compute.start_time <= compute.end_time <= request.end_time
    assert request.resource.attributes["service.name"] == "edgekit"


@pytest.mark.parametrize(
    "header",
    ["", "00-zz", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-x", "é" * 10],
)
def test_what_is_no_traceparent_begins_a_trace(server: Server, kept: Kept, header: str) -> None:
    with Client(server.url) as client:
        assert client.ask("POST", INFER, BODY, {"traceparent": header} if header else {}).status == 200
    server.__exit__(None, None, None)
    span = by_name(kept)["infer net"]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_a_client_that_does_not_sample_is_left_alone(server: Server, kept: Kept) -> None:
    with Client(server.url) as client:
        assert client.ask("POST", INFER, BODY, {"traceparent": f"00-{TRACE}-{PARENT}-00"}).status == 200
    server.__exit__(None, None, None)
    assert kept == []


def test_grpc_too_also_when_the_message_is_known(server: Server, kept: Kept) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    x = grpcclient.InferInput("x", [1], "FP32")
    x.set_data_from_numpy(np.array([4], np.float32))
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        for number in range(1, 4):
            client.infer("net", [x], headers={"traceparent": f"00-{number:032x}-{PARENT}-01"})
        client.infer("net", [x])
    server.__exit__(None, None, None)
    traces = [span.context.trace_id for span in kept if span.name == "infer net"]
    assert traces[:3] == [1, 2, 3]
    assert traces[3] > 3


def test_a_request_that_fails_is_an_error(server: Server, kept: Kept) -> None:
    with Client(server.url) as client:
        assert client.ask("POST", INFER, infer_body(tensor("z", [1], [3]))).status == 400
    server.__exit__(None, None, None)
    (span,) = kept
    assert span.status.status_code.name == "ERROR"
    assert "z" in span.status.description


def test_the_command_sends_them_where_the_environment_says(tmp_path: Path) -> None:
    scaled_package(tmp_path / "scaled.edge")
    bodies: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        place = f"http://127.0.0.1:{collector.server_address[1]}"
        script = (
            "import os, sys\n"
            f"os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = '{place}'\n"
            "os.environ['OTEL_SERVICE_NAME'] = 'camera'\n"
            "from tests.serve.running import *\n"
            "with served(sys.argv[1], options=('--otel',)) as server, Client(server.url) as client:\n"
            "    body = infer_body(tensor('x', [1], [3]))\n"
            "    assert client.ask('POST', '/v2/models/scaled/infer', body).status == 200\n"
        )
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "scaled.edge")], check=True, timeout=60)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert [path for path, _ in bodies] == ["/v1/traces"]
    for word in (b"infer scaled", b"camera", b"compute"):
        assert word in bodies[0][1]


def test_nothing_of_it_is_loaded_when_it_is_off(tmp_path: Path) -> None:
    scaled_package(tmp_path / "scaled.edge")
    script = (
        "import sys\nfrom edgekit.serve.library import Library\nfrom edgekit.serve.server import Server\n"
        "from tests.serve.running import *\n"
        "with Server(Library([sys.argv[1]]).load_all(), port=0) as server, Client(server.url) as client:\n"
        "    head = {'traceparent': '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'}\n"
        "    body = infer_body(tensor('x', [1], [3]))\n"
        "    assert client.ask('POST', '/v2/models/scaled/infer', body, head).status == 200\n"
        "    assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "scaled.edge")], check=True, timeout=60)
