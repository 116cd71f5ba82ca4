"""What is set while a server runs, asked with Triton's own client."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgekit.errors import InputError, UsageError
from edgekit.serve.messages import RequestError
from edgekit.serve.settings import JsonFormatter, LogSettings, TraceSettings
from tests.serve.running import Client, Running, infer_body, served, tensor
from tests.tiny import tiny_package

BODY = infer_body(tensor("x", [1, 4], [1, 2, 3, 4]), id="request-7")
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that writes traces, and where."""
    folder = tmp_path_factory.mktemp("traced")
    tiny_package(folder / "tiny.edge")
    options = ("--trace-file", str(folder / "traces.jsonl"), "--grpc-port", "off", "--watch", "0")
    with served(folder / "tiny.edge", options=options) as running:
        yield running, folder / "traces.jsonl"


def test_traces_are_switched_on_and_off_by_clients(traced: tuple[Running, Path]) -> None:
    running, path = traced
    with triton.InferenceServerClient(running.address) as client, Client(running.url) as raw:
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        raw.ask("POST", INFER, BODY)
        assert path.read_text() == ""
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "3"}
        assert client.update_trace_settings("tiny", settings)["trace_rate"] == "2"
        assert client.get_trace_settings("tiny")["trace_level"] == ["TIMESTAMPS"]
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        for _ in range(20):
            raw.ask("POST", INFER, BODY)
        traces = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(traces) == 3
        assert {(t["model_name"], t["request_id"]) for t in traces} == {("tiny", "request-7")}
        for trace in traces:
            times = [t["ns"] for t in trace["timestamps"]]
            assert times == sorted(times)
            assert [t["name"] for t in trace["timestamps"]][0::6] == ["REQUEST_START", "REQUEST_END"]
        for wrong in ({"trace_level": ["LOUD"]}, {"colour": "red"}, {"trace_rate": "0"}):
            with pytest.raises(InferenceServerException, match="[Ss]etting"):
                client.update_trace_settings("tiny", wrong)
        with pytest.raises(InferenceServerException, match="not changed by clients"):
            client.update_trace_settings("tiny", {"trace_file": "/etc/passwd"})
        with pytest.raises(InferenceServerException, match="'other' is not served here"):
            client.get_trace_settings("other")


def test_log_settings(traced: tuple[Running, Path]) -> None:
    with triton.InferenceServerClient(traced[0].address) as client:
        assert client.get_log_settings()["log_verbose_level"] == 0
        assert client.update_log_settings({"log_verbose_level": 1, "log_info": False})["log_verbose_level"] == 1
        assert client.get_log_settings()["log_info"] is False
        with pytest.raises(InferenceServerException, match="not changed by clients"):
            client.update_log_settings({"log_file": "/etc/passwd"})
        with pytest.raises(InferenceServerException, match="expected true or false"):
            client.update_log_settings({"log_error": "no"})
    with Client(traced[0].url) as raw:
        assert raw.ask("POST", "/v2/logging", b"[1]").status == 400
        assert raw.ask("POST", "/v2/logging", b"").status == 200


def test_null_sets_back() -> None:
    traces = TraceSettings()
    traces.change({"trace_level": "TENSORS", "trace_rate": 5})
    assert traces.active
    assert traces.change({"trace_level": None, "trace_rate": [], "trace_count": None}) == TraceSettings().document()
    assert not traces.active


def test_a_trace_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        TraceSettings(tmp_path / "no" / "traces")


def test_mistakes() -> None:
    logs = LogSettings()
    for values, error in (
        ({"log_verbose_level": -1}, InputError),
        ({"log_level": 1}, InputError),
        ({"log_format": "ISO8601"}, RequestError),
    ):
        with pytest.raises(error):
            logs.change(values)
    assert logs.document() == LogSettings().document()


def test_log_lines_are_json_with_the_request_s_id(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny.edge").path
    options = ("--log", "json", "--log-requests", "--grpc-port", "off")
    with served(package, options=options) as running, Client(running.url) as client:
        client.ask("POST", INFER, BODY)
        client.ask("POST", INFER, infer_body(tensor("x", [1, 3], [1, 2, 3]), id="wrong"))
        running.process.terminate()
        assert running.process.stderr is not None
        lines = running.process.stderr.read().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    good, bad = (next(r for r in records if r.get("request_id") == i) for i in ("request-7", "wrong"))
    assert (good["model"], good["status"], good["level"]) == ("tiny", 200, "info")
    assert good["total_us"] >= good["run_us"] >= 0
    assert "got (1,3)" in bad["error"]
    assert bad["level"] == "warning"


def test_a_log_line_in_text_is_one_line_with_the_client_s_own_name(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny.edge").path
    body = json.dumps({**json.loads(BODY), "id": "a\nWARNING: false"}).encode()
    nameless = json.dumps({**json.loads(BODY), "id": ""}).encode()
    with served(package, options=("--log-requests", "--grpc-port", "off")) as running, Client(running.url) as client:
        client.ask("POST", INFER, body)
        client.ask("POST", INFER, nameless, {"X-Request-Id": "from-the-proxy"})
        running.process.terminate()
        assert running.process.stderr is not None
        lines = [line for line in running.process.stderr.read().splitlines() if "model=tiny" in line]
    assert [line.split()[1] for line in lines] == ["request_id=a\\x0aWARNING:", "request_id=from-the-proxy"]


def test_a_record_with_a_traceback_is_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord(
            "a", logging.ERROR, "f", 1, "it %s", ("broke",), (ValueError, error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert document["message"] == "it broke"
    assert "ValueError: two" in document["traceback"]
