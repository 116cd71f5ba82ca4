from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit._lazy import available
from edgekit.package import Package
from tests.tiny import WEIGHT

Run = Callable[..., subprocess.CompletedProcess[str]]
needs_ray = pytest.mark.skipif(not available("ray"), reason="needs Ray: pip install 'edgekit[ray]'")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--uds", "x.sock"), "--uds is not for --ray"),
        (("--workers", "2"), "give --replicas instead of --workers"),
        (("--replicas", "3:2"), "'3:2' is not a range of replicas"),
        (("--target-requests", "0"), "--target-requests must be at least 1"),
    ],
)
def test_what_ray_serve_does_not_have_is_refused(
    tiny: Package, edgekit: Run, arguments: tuple[str, ...], sentence: str
) -> None:
    done = edgekit("serve", tiny.path, "--ray", "local", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.skipif(available("ray"), reason="Ray is installed here")
@pytest.mark.parametrize("command", ["batch", "serve"])
def test_without_ray_the_extra_is_named(tiny: Package, edgekit: Run, tmp_path: Path, command: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    more = (tmp_path, "-o", tmp_path / "out.csv") if command == "batch" else ()
    done = edgekit(command, tiny.path, *more, "--ray", "local")
    assert done.returncode == 2
    assert "pip install 'edgekit[ray]'" in done.stderr


@pytest.fixture
def site(tiny: Package, tmp_path: Path) -> Iterator[str]:
    """The URL of `edgekit serve --ray local` with the tiny package."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgekit", "serve", tiny.path, "--ray", "local", "--port", port, "--json"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        yield json.loads(line)["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def ask(url: str, document: object = None) -> tuple[int, Any]:
    data = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    return status, json.loads(body) if body else None


def replicas() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:tiny"):
            found.append(int(folder.name))
    return found


@needs_ray
@pytest.mark.slow
def test_a_replica_answers_the_protocol_and_is_replaced_when_it_dies(site: str) -> None:
    x = [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 0.0]]
    request = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": x}]}
    model = f"{site}/v2/models/tiny"

    def scores() -> Any:
        status, answer = ask(f"{model}/infer", request)
        assert status == 200, answer
        return np.array(answer["outputs"][0]["data"]).reshape(2, 3)

    np.testing.assert_allclose(scores(), np.array(x) @ WEIGHT, rtol=1e-6)
    assert ask(model)[1]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [ask(f"{site}/v2/health/{what}")[0] for what in ("live", "ready")] == [200, 200]
    assert ask(f"{model}/ready")[0] == 200
    assert ask(f"{site}/v2/repository/index", {})[1][0]["state"] == "READY"
    assert ask(f"{model}/infer", {"inputs": []}) == (
        400,
        {"error": "Input 'x' is missing; expected x: float32[batch, 4]."},
    )
    assert ask(f"{site}/v2/models/other/infer", request)[0] == 404
    (dead,) = replicas()
    os.kill(dead, signal.SIGKILL)
    deadline = time.monotonic() + 90
    while not (set(replicas()) - {dead} and ask(f"{model}/infer", request)[0] == 200):
        assert time.monotonic() < deadline, "no other replica took its place"
        time.sleep(0.5)
    np.testing.assert_allclose(scores(), np.array(x) @ WEIGHT, rtol=1e-6)
