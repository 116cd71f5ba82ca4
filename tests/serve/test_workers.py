"""Several workers behind one port: load while one is killed, questions about all of them, changes in all, the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from tests.serve.packages import scaled_package
from tests.serve.running import Client, Running, infer_body, served, tensor

INFER = "/v2/models/scaled/infer"
WORKERS = 3


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workers") / "scaled.edge"
    scaled_package(path)
    return path


@pytest.fixture
def server(package: Path, tmp_path: Path) -> Iterator[Running]:
    options = ("--workers", str(WORKERS), "--uds", str(tmp_path / "socket"))
    with served(package, options=options) as running:
        yield running


def workers_of(server: Running) -> set[int]:
    """The processes of the workers."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return set(map(int, children.split()))


def series(text: str, name: str) -> dict[str, float]:
    lines = (line for line in text.splitlines() if line.startswith(name + "{"))
    return {labels: float(value) for labels, _, value in (line.rpartition(" ") for line in lines)}


class Load(threading.Thread):
    """Asks on one connection after the other until told to stop: counts answers, wrong ones, lost connections."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.number = url, number
        self.right, self.wrong, self.lost = 0, 0, 0
        self.longest_s = 0.0
        self.ending = threading.Event()

    def run(self) -> None:
        value = self.number * 1_000_000
        while not self.ending.is_set():
            try:
                with Client(self.url) as client:
                    while not self.ending.is_set():
                        value += 1
                        began = time.monotonic()
                        answer = client.ask("POST", INFER, infer_body(tensor("x", [1], [value])))
                        self.longest_s = max(self.longest_s, time.monotonic() - began)
                        good = answer.status == 200 and answer.json["outputs"][0]["data"] == [2 * value]
                        self.right += good
                        self.wrong += not good
            except OSError:
                self.lost += 1


def test_a_worker_that_is_killed_under_load_is_back_at_once_and_the_others_go_on(server: Running) -> None:
    load = [Load(server.url, number) for number in range(12)]
    for one in load:
        one.start()
    time.sleep(0.7)
    before = workers_of(server)
    assert len(before) == WORKERS
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while True:  # until all of them answer again, which the metrics tell
        with Client(server.url) as client:
            text = client.ask("GET", "/metrics").body.decode()
        ready = series(text, "edgekit_ready")
        if len(ready) == WORKERS and victim not in workers_of(server):
            break
        assert time.monotonic() - killed < 10.0, ready
        time.sleep(0.02)
    back_s = time.monotonic() - killed
    time.sleep(0.5)
    for one in load:
        one.ending.set()
    for one in load:
        one.join()
    after = workers_of(server)
    assert len(after & before) == WORKERS - 1
    assert back_s < 4.0  # measured: 0.2 to 0.5 s on two busy cores
    assert sum(one.wrong for one in load) == 0
    lost = [one.lost for one in load]
    assert max(lost) <= 1  # those of the killed worker, once; nobody else's
    assert sum(lost) < len(load)
    assert max(one.longest_s for one in load if not one.lost) < 4.0
    assert min(one.right for one in load) > 10


def test_metrics_tell_the_workers_apart_and_statistics_add_them_up(server: Running) -> None:
    counted = 24
    for value in range(counted):
        with Client(server.url) as client:
            assert client.ask("POST", INFER, infer_body(tensor("x", [1], [value]))).status == 200
    for _ in range(6):  # whoever is asked
        with Client(server.url) as client:
            text = client.ask("GET", "/metrics").body.decode()
            requests = series(text, "edgekit_requests_total")
            assert len(requests) == WORKERS
            assert sum(requests.values()) == counted
            assert text.count("# TYPE edgekit_requests_total counter") == 1
            stats = client.ask("GET", "/v2/models/scaled/stats").json["model_stats"]
            assert [s["inference_stats"]["success"]["count"] for s in stats] == [counted]
            assert stats[0]["execution_count"] == counted
            assert sum(b["compute_infer"]["count"] for b in stats[0]["batch_stats"]) == counted
    assert sum(v > 0 for v in requests.values()) > 1, "one worker took every connection"


def test_grpc_is_shared_too_and_its_statistics_added_up(server: Running) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    for value in range(10):
        with grpcclient.InferenceServerClient(server.grpc) as client:
            x = grpcclient.InferInput("x", [1], "FP32")
            x.set_data_from_numpy(np.array([value], np.float32))
            assert client.infer("scaled", [x]).as_numpy("y")[0] == 2 * value
    with grpcclient.InferenceServerClient(server.grpc) as client:
        stats = client.get_inference_statistics("scaled", as_json=True)
    assert stats["model_stats"][0]["inference_stats"]["success"]["count"] == "10"


def test_a_change_holds_in_every_worker_also_in_one_that_starts_later(server: Running) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    memory = shared_memory.SharedMemory(create=True, size=64)
    try:
        body = json.dumps({"key": memory.name, "offset": 0, "byte_size": 64}).encode()
        with Client(server.url) as client:
            assert client.ask("POST", "/v2/systemsharedmemory/region/part/register", body).status == 200
        with grpcclient.InferenceServerClient(server.grpc) as client:
            client.register_system_shared_memory("other", memory.name, 32)

        def regions() -> list[list[str]]:
            return [sorted(r["name"] for r in ask(server, "/v2/systemsharedmemory/status")) for _ in range(12)]

        assert regions() == [["other", "part"]] * 12
        os.kill(max(workers_of(server)), signal.SIGKILL)
        time.sleep(0.05)
        assert regions() == [["other", "part"]] * 12
        with Client(server.url) as client:
            assert client.ask("POST", "/v2/repository/models/scaled/unload").status == 200
        assert [len(ask(server, "/v2/models/stats")["model_stats"]) for _ in range(9)] == [0] * 9
        with Client(server.url) as client:
            assert client.ask("POST", "/v2/repository/models/nothing/load").status == 404
            assert client.ask("POST", "/v2/repository/models/scaled/load").status == 200
        assert [status(server, "/v2/models/scaled/ready") for _ in range(9)] == [200] * 9
    finally:
        memory.close()
        memory.unlink()


def ask(server: Running, path: str) -> object:
    with Client(server.url) as client:
        return client.ask("GET", path).json


def status(server: Running, path: str) -> int:
    with Client(server.url) as client:
        return client.ask("GET", path).status


def test_a_worker_that_cannot_start_again_is_tried_less_and_less_and_the_others_serve(
    package: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "scaled.edge"
    scaled_package(copy)
    with served(copy, options=("--workers", "2", "--watch", "0")) as server:
        (copy / "manifest.json").rename(tmp_path / "away.json")
        os.kill(max(workers_of(server)), signal.SIGKILL)
        time.sleep(3.0)
        told = [status(server, INFER.removesuffix("/infer")) for _ in range(20)]
        assert told == [200] * 20  # what comes meanwhile goes to the one that is there
        (tmp_path / "away.json").rename(copy / "manifest.json")
        end = time.monotonic() + 10.0
        while len(series(str_of(server, "/metrics"), "edgekit_ready")) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        server.process.terminate()
        log = server.process.stderr.read() if server.process.stderr else ""
    assert "was ended by signal 9" in log
    pauses = [line.rpartition(" again ")[2] for line in log.splitlines() if "ended with code" in line]
    assert pauses[:3] == ["in 0.25 s", "in 0.5 s", "in 1 s"]
    assert len(pauses) < 8


def test_a_worker_that_hangs_is_replaced(package: Path) -> None:
    with served(package, options=("--workers", "2", "--worker-timeout", "2")) as server:
        before = workers_of(server)
        os.kill(max(before), signal.SIGSTOP)
        end = time.monotonic() + 20.0
        while max(before) in workers_of(server) or len(series(str_of(server, "/metrics"), "edgekit_ready")) < 2:
            assert time.monotonic() < end, "it still hangs"
            time.sleep(0.1)
        other = max(workers_of(server))
        assert min(before) in workers_of(server)
        time.sleep(2.5)
        assert other in workers_of(server), "one that lives is left alone"
        os.kill(other, signal.SIGABRT)  # as the supervisor asks where it hangs
        time.sleep(1.0)
        server.process.terminate()
        log = server.process.stderr.read() if server.process.stderr else ""
    assert f"(process {max(before)}) hangs; it is ended" in log
    assert "Current thread" in log
    assert "run_forever" in log or "asyncio" in log or "server.py" in log


def str_of(server: Running, path: str) -> str:
    with Client(server.url) as client:
        return client.ask("GET", path).body.decode()


def test_the_end_answers_what_is_in_flight_in_every_worker(server: Running, tmp_path: Path) -> None:
    clients = [Client(server.url) for _ in range(9)]
    body = infer_body(tensor("x", [1], [4]))
    for client in clients:  # half a request each
        client.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    time.sleep(0.5)  # each is accepted by then
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(ConnectionError):
        Client(server.url)
    for client in clients:
        client.send(body[10:])
    for client in clients:
        answer = client.read()
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [8])
        client.socket.close()
    assert server.process.wait(10) == 0
    assert not (tmp_path / "socket").exists()


def test_workers_end_with_their_supervisor(package: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "serve", str(package), "--workers", "2", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        workers = workers_of(Running("", process, []))
        (folder,) = {Path(p).parent for w in workers for p in listening(w) if Path(p).name in ("0.sock", "1.sock")}
        process.kill()
    end = time.monotonic() + 10.0
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "a worker outlived its supervisor"
        time.sleep(0.05)
    assert not folder.exists()


def listening(pid: int) -> set[str]:
    """The Unix sockets with a path of a process."""
    paths = {line.split()[6]: line.split()[7:] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return {p for link in links if link.startswith("socket:[") for p in paths.get(link[8:-1], [])}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_keeps_workers_from_starting_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "serve", str(tmp_path / "no.edge"), "--workers", "4", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("edgekit:") == 1
    assert "Traceback" not in done.stderr


def test_the_port_of_another_server_is_not_shared_by_accident(server: Running, package: Path) -> None:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "edgekit", "serve", str(package), "--workers", "2", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 is in use" in done.stderr


def test_files_are_read_again_in_every_worker_on_sighup(package: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-of-all")
    tokens.chmod(0o600)

    def answers(server: Running, token: str) -> set[int]:
        found = set()
        for _ in range(12):
            with Client(server.url) as client:
                found.add(client.ask("GET", "/v2", headers={"Authorization": f"Bearer {token}"}).status)
        return found

    with served(package, options=("--workers", "2", "--token-file", str(tokens))) as server:
        assert answers(server, "first-token-of-all") == {200}
        tokens.write_text("second-token-of-all")
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 10.0
        while answers(server, "second-token-of-all") != {200}:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert answers(server, "first-token-of-all") == {401}
        with Client(server.url) as client:  # workers ask each other without a token
            text = client.ask("GET", "/metrics", headers={"Authorization": "Bearer second-token-of-all"}).body.decode()
        assert len(series(text, "edgekit_ready")) == 2


def test_ctrl_c_in_a_terminal_ends_all_of_them_with_0(package: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "serve", str(package), "--workers", "2", "--port", "0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        workers = workers_of(Running("", process, []))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to every process at once
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert not any(alive(pid) for pid in workers)
