"""Sockets: ports, Unix sockets that come and go, what systemd hands over and is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EdgekitError, UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.limits import Limits
from edgekit.serve.listen import bind, bind_tcp, bind_unix
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.serve.systemd import Notifier
from edgekit.tensors import TensorSpec
from tests.serve.packages import scaled_package
from tests.serve.running import Client, infer_body, tensor

INFER = "/v2/models/net/infer"
BODY = infer_body(tensor("x", [1], [3]))


def model(latency_s: float = 0.0) -> Model:
    spec = [TensorSpec("x", "float32", ("n",))]
    session = FakeSession(
        spec, [TensorSpec("y", "float32", ("n",))], lambda feed: {"y": feed["x"] * 2}, latency_s=latency_s
    )
    return Model(session, name="net")


class UnixClient(Client):
    """A client of a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10.0)
        self.socket.connect(str(path))
        self._buffer = b""


def test_one_unix_socket_takes_http_and_grpc(tmp_path: Path) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    path = tmp_path / "socket"
    with Server([model()], port=None, uds=path, uds_mode=0o600) as server:
        assert (server.url, server.grpc_address) == ("", "")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with UnixClient(path) as client:
            assert client.ask("POST", INFER, BODY).json["outputs"][0]["data"] == [6]
            assert client.ask("POST", INFER, BODY).status == 200
        with grpcclient.InferenceServerClient(f"unix:{path}") as calls:
            x = grpcclient.InferInput("x", [1], "FP32")
            x.set_data_from_numpy(np.array([4], np.float32))
            assert calls.infer("net", [x]).as_numpy("y")[0] == 8
        with UnixClient(path) as client:
            client.send(b"PRI / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.read().status == 400
    assert not path.exists()


def test_limits_hold_before_a_client_of_a_unix_socket_has_spoken(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server([model()], port=None, uds=path, limits=Limits(connections=2, idle_s=0.2)) as _server:
        silent = [UnixClient(path), UnixClient(path)]
        time.sleep(0.05)
        with UnixClient(path) as one_more:
            assert one_more.read().status == 503
        assert all(client.closed() for client in silent)
        for client in silent:
            client.socket.close()


def test_a_socket_that_was_left_behind_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    bind_unix(path).close()  # its owner is gone, its file is not
    assert path.exists()
    with Server([model()], port=None, uds=path), UnixClient(path) as client:
        assert client.ask("GET", "/v2").status == 200
        with pytest.raises(EdgekitError, match="in use by another server"):
            bind_unix(path)
        assert client.ask("GET", "/v2").status == 200
    path.write_text("precious")
    with pytest.raises(UsageError, match="is there and no socket"):
        bind_unix(path)
    assert path.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(UsageError, match="no socket"):
        bind_unix(link)
    with pytest.raises(UsageError, match="too long"):
        bind_unix(tmp_path / ("x" * 200))
    with pytest.raises(EdgekitError, match="cannot be made"):
        bind_unix(tmp_path / "none" / "socket")


def test_the_file_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = bind("127.0.0.1", None, None, uds=path)
    path.unlink()
    second = bind("127.0.0.1", None, None, uds=path)
    first.remove_files()
    assert path.exists()
    second.remove_files()
    assert not path.exists()
    first.close()
    second.close()


def test_a_port_that_cannot_be_had_leaves_no_socket_behind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EdgekitError, match=f"Port {port} .* --grpc-port"):
            bind("127.0.0.1", 0, port, uds=path)
    assert not path.exists()
    (one,) = bind_tcp("127.0.0.1", 0, option="--port", shared=True)
    one.listen()
    with pytest.raises(EdgekitError, match="in use"):
        bind_tcp("127.0.0.1", one.getsockname()[1], option="--port", shared=True)
    one.close()


# systemd


def manager(address: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.bind(address)
    one.settimeout(20.0)
    return one


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_hears_of_the_start_signs_of_life_reloading_and_the_end(
    tmp_path: Path, abstract: bool, workers: int
) -> None:
    scaled_package(tmp_path / "scaled.edge")
    name = f"edgekit-test-{os.getpid()}-{workers}" if abstract else str(tmp_path / "notify")
    command = [sys.executable, "-m", "edgekit", "serve", str(tmp_path / "scaled.edge"), "--port", "0"]
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": "@" + name if abstract else name,
        "WATCHDOG_USEC": "400000",
    }
    with manager("\0" + name if abstract else name) as notices:
        process = subprocess.Popen([*command, "--workers", str(workers)], env=environment, stderr=subprocess.DEVNULL)
        try:
            notice = notices.recv(4096).decode()
            while notice == "WATCHDOG=1":  # the supervisor is alive before its workers are ready
                notice = notices.recv(4096).decode()
            assert notice.startswith("READY=1\nSTATUS=")
            began = time.monotonic()
            assert [notices.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            assert time.monotonic() - began < 3.0
            if workers == 1:
                process.send_signal(signal.SIGHUP)
                told = ""
                while not told.startswith("RELOADING=1"):
                    told = notices.recv(4096).decode()
                assert "MONOTONIC_USEC=" in told
                while not told.startswith("READY=1"):
                    told = notices.recv(4096).decode()
            process.terminate()
            told = ""
            while not told.startswith("STOPPING=1"):
                told = notices.recv(4096).decode()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def test_nobody_is_told_where_there_is_no_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("here")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier()
    notifier.ready("here")
    assert notifier.watchdog_s is None  # another process is asked


def test_sockets_from_systemd_are_served(tmp_path: Path) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    scaled_package(tmp_path / "scaled.edge")
    start = (  # what systemd does before it starts a service
        "import os, sys\n"
        "for target, source in zip((3, 4), [os.dup2(int(n), 100 + i) for i, n in enumerate(sys.argv[1:3])]):\n"
        "    os.dup2(source, target)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'edgekit', *sys.argv[3:]])\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.create_server(("127.0.0.1", 0)) as grpc,
    ):
        numbers = (http.fileno(), grpc.fileno())
        package = str(tmp_path / "scaled.edge")
        process = subprocess.Popen(
            [sys.executable, "-c", start, *map(str, numbers), "serve", package, "--json"],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:grpc"},
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=numbers,
        )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["url"] == f"http://127.0.0.1:{http.getsockname()[1]}"
            with Client(ready["url"]) as client:
                assert client.ask("GET", "/v2/models/scaled").status == 200
            with grpcclient.InferenceServerClient(f"127.0.0.1:{grpc.getsockname()[1]}") as calls:
                assert calls.is_model_ready("scaled")
        finally:
            process.terminate()
            assert process.wait(20) == 0
            process.stdout.close()
