"""What Prometheus reads."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from edgekit.serve.app import App
from edgekit.serve.machine import MachineWatch
from edgekit.serve.metrics import exposition
from edgekit.serve.repository import Repository
from tests.serve.running import Client, infer_body, served, tensor
from tests.telemetry import boards
from tests.tiny import tiny_package

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def parsed(text: str) -> dict[str, dict[str, float]]:
    """name -> labels -> value; every line must be of the text format, with HELP and TYPE before it."""
    out: dict[str, dict[str, float]] = {}
    announced: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, rest = line.split(" ", 3)
            assert kind in ("HELP", "TYPE")
            assert kind == "HELP" or rest in ("counter", "gauge", "histogram")
            announced.add(name)
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert re.sub(r"_(bucket|sum|count)$", "", name) in announced or name in announced, name
        out.setdefault(name, {})[labels or ""] = float(value)
    return out


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """After three good requests (two of them equal, one of three rows) and a bad one."""
    package: Path = tiny_package(tmp_path_factory.mktemp("metrics") / "tiny.edge").path
    options = ("--grpc-port", "off", "--cache-mib", "1")
    with served(package, options=options) as running, Client(running.url) as client:
        for rows in (1, 1, 3):
            body = infer_body(tensor("x", [rows, 4], [1.0] * 4 * rows))
            assert client.ask("POST", "/v2/models/tiny/infer", body).status == 200
        assert client.ask("POST", "/v2/models/tiny/infer", infer_body(tensor("x", [1, 3], [1] * 3))).status == 400
        answer = client.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.body.decode())


def test_counters(metrics: dict[str, dict[str, float]]) -> None:
    own = 'model="tiny",version="1"'
    expected = {"requests": 3, "rows": 5, "runs": 2, "cache_hits": 1, "cache_misses": 3, "cancelled": 0}
    for name, value in expected.items():
        assert metrics[f"edgekit_{name}_total"][own] == value, name
    assert metrics["edgekit_failures_total"] == {f'{own},status="400"': 1}
    assert metrics["edgekit_cache_bytes"][own] > 0
    assert metrics["edgekit_ready"][""] == 1
    assert 10e6 < metrics["process_resident_memory_bytes"][""] < 1e9


def test_the_machine_is_read_once_somebody_looks(tmp_path: Path) -> None:
    board = boards.orin_nano(tmp_path / "board")
    app = App(Repository())
    app.machine = MachineWatch(board)
    assert app.machine.now is None
    end = time.monotonic() + 10
    while "edgekit_power_watts" not in (text := exposition(app).decode()) and time.monotonic() < end:
        time.sleep(0.01)
    found = parsed(text)
    assert sum(found["edgekit_power_watts"].values()) > 1
    assert found["edgekit_energy_joules_total"]
    assert max(found["edgekit_temperature_celsius"].values()) > 20
    app.close()
    assert "edgekit_power_watts" not in exposition(app).decode()


def test_histograms(metrics: dict[str, dict[str, float]]) -> None:
    own = 'model="tiny",version="1"'
    for name, count in (("request_duration_seconds", 3), ("queue_duration_seconds", 2), ("run_duration_seconds", 2)):
        buckets = list(metrics[f"edgekit_{name}_bucket"].values())
        assert buckets == sorted(buckets)
        assert buckets[-1] == metrics[f"edgekit_{name}_count"][own] == count
        assert 0 <= metrics[f"edgekit_{name}_sum"][own] < 1
    rows = metrics["edgekit_batch_rows_bucket"]
    assert [rows[f'{own},le="{bound}"'] for bound in (1, 2, 4, "+Inf")] == [1, 1, 2, 2]
    assert metrics["edgekit_batch_rows_sum"][own] == 4
