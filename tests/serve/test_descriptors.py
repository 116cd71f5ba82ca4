"""More clients than a process may have files: those beyond are told so, and nobody else notices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.serve.descriptors import KEPT
from tests.serve.packages import scaled_package
from tests.serve.running import Client, infer_body, tensor

LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, ({}, n)); "
LIMITED += "os.execv(sys.executable, [sys.executable, '-m', 'edgekit', *sys.argv[2:]])"


@pytest.mark.parametrize(("soft", "hard", "room"), [("n", KEPT + 40, 20), ("64", 4096, 300)])
def test_connections_that_do_not_fit_are_refused_and_the_others_served(
    tmp_path: Path, soft: str, hard: int, room: int
) -> None:
    scaled_package(tmp_path / "scaled.edge")
    command = [sys.executable, "-c", LIMITED.format(soft), str(hard), "serve", str(tmp_path / "scaled.edge")]
    with subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        clients = [Client(url) for _ in range(room)]
        assert all(client.ask("GET", "/v2/health/live").status == 200 for client in clients)
        if hard < 1024:
            with Client(url) as one_more:
                assert one_more.read().status == 503
        body = infer_body(tensor("x", [1], [3]))
        assert clients[0].ask("POST", "/v2/models/scaled/infer", body).status == 200
        for client in clients:
            client.socket.close()
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert "Traceback" not in log
