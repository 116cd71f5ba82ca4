"""`edgekit serve` as a user meets it: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.package import Package
from tests.serve.packages import copy_with_changed_byte, wide_package
from tests.serve.running import Client, infer_body, served, tensor
from tests.telemetry import boards

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_it_says_what_it_serves_and_where(tiny: Package) -> None:
    command = [sys.executable, "-m", "edgekit", "serve", str(tiny.path), "--port", "0", "--json", "--variant", "fp32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = json.loads(line)
        with Client(ready["url"]) as client:
            assert client.ask("GET", "/v2/models/tiny").status == 200
        process.send_signal(signal.SIGINT)
        out, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert [(m["name"], m["version"], m["variant"]) for m in ready["models"]] == [("tiny", "1", "fp32")]
    first, last = log.splitlines()
    assert re.match(r"tiny: fp32 \(asked for\), ONNX Runtime .*, CPU, \d+ threads?, runs ", first)
    assert last == f"ready on {ready['url']}, gRPC on {ready['grpc']}"


def test_it_loads_neither_torch_nor_onnx_nor_plotting(tiny: Package) -> None:
    """Every module that the process imports is on its list of import times."""
    command = [sys.executable, "-X", "importtime", "-m", "edgekit", "serve", str(tiny.path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with Client(url) as client:
            assert client.ask("POST", "/v2/models/tiny/infer", infer_body(tensor("x", [1, 4], [1] * 4))).status == 200
        process.terminate()
        _, log = process.communicate(timeout=30)
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines() if "import time:" in line}
    assert {"onnxruntime", "numpy", "httptools", "uvloop"} <= names
    assert not names & {"torch", "onnx", "onnxscript", "matplotlib", "sklearn", "scipy", "rich", "PIL"}


def test_a_machine_mounted_elsewhere_gives_energy_and_heat(tiny: Package, tmp_path: Path) -> None:
    """A built AGX Orin that says it is slowed down: joules of a request, and the machine's metrics."""
    root, body = boards.agx_orin(tmp_path / "host"), infer_body(tensor("x", [1, 4], [1] * 4))
    metrics, headers, until_s = "", {}, time.monotonic() + 20
    with served(tiny.path, options=("--root", str(root), "--energy-header")) as running, Client(running.url) as client:
        while not ("edgekit_throttled" in metrics and "x-energy-joules" in headers) and time.monotonic() < until_s:
            time.sleep(0.1)
            headers = client.ask("POST", "/v2/models/tiny/infer", body).headers
            metrics = client.ask("GET", "/metrics").body.decode()
    assert float(headers["x-energy-joules"]) >= 0
    assert headers["x-energy-source"] in ("rail", "estimate")
    assert 'edgekit_throttled{cause="gpu-throttle-alert"} 1' in metrics
    assert "edgekit_thermal_headroom_celsius 49.938" in metrics


def test_a_machine_that_is_not_mounted_is_refused(tiny: Package, edgekit: Run) -> None:
    done = edgekit("serve", str(tiny.path), "--root", "/nowhere/at/all")
    assert done.returncode == 2
    assert "--root /nowhere/at/all is not a folder" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_in_flight_finish(tmp_path: Path, number: signal.Signals) -> None:
    rows, width = 3, 1 << 20
    size = rows * width * 4
    with served(wide_package(tmp_path / "wide.edge", width).path) as running, Client(running.url) as client:
        head = infer_body(
            {
                "name": "x",
                "shape": [rows, width],
                "datatype": "FP32",
                "parameters": {"binary_data_size": rows * width * 4},
            },
            parameters={"binary_data_output": True},
        )
        lines = f"Content-Length: {len(head) + size}\r\nInference-Header-Content-Length: {len(head)}\r\n"
        client.send(f"POST /v2/models/wide/infer HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode() + head)
        client.send(bytes(size))
        running.process.send_signal(number)
        answer = client.read()
        assert answer.status == 200
        assert len(answer.body) > size
        assert client.closed()
        assert running.process.wait(timeout=20) == 0


def test_a_repository_folder(tiny: Package, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(tiny.path, folder / "tiny.edge")
    wide_package(folder / "wide.edge", 8)
    with served(folder, options=("--threads", "1")) as running:
        assert [m["name"] for m in running.models] == ["tiny", "wide"]
        assert all("1 thread" in m["device"] for m in running.models)


def test_a_port_in_use(tiny: Package, edgekit: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = edgekit("serve", tiny.path, "--port", port)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"edgekit: Port {port} of 127.0.0.1 is in use.")
    assert "--port 0" in last


def test_what_cannot_be_served_is_one_sentence(tiny: Package, tmp_path: Path, edgekit: Run) -> None:
    twin = shutil.copytree(tiny.path, tmp_path / "twin.edge")
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.onnx").write_bytes(b"x")
    changed = copy_with_changed_byte(wide_package(tmp_path / "wide.edge", 8).path, tmp_path / "changed.edge")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((tiny.path, twin), 2, "are both named 'tiny'"),
        ((tmp_path / "empty",), 2, "holds no package"),
        ((tmp_path / "net.onnx",), 2, "is not an edgekit package"),
        ((tmp_path / "nothing.edge",), 2, "does not exist"),
        ((changed,), 1, "was changed: its SHA-256 does not match"),
        ((tiny.path, "--variant", "int4"), 2, "no variant 'int4'"),
        ((tiny.path, "--port", "65536"), 2, "is not a port"),
        ((tiny.path, "--threads", "0"), 2, "is not a number from 1 to 1024"),
        ((tiny.path, "--host", "no such host.invalid"), 2, "is not an address"),
        ((), 2, "required"),
    ]
    for arguments, code, words in cases:
        done = edgekit("serve", *map(str, arguments))
        assert done.returncode == code, done.stderr
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    done = edgekit("serve", tmp_path / "empty", "--json")
    assert json.loads(done.stdout)["exit_code"] == 2
