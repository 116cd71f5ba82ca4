"""A server in a process of its own, and raw bytes to and from one."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Running:
    """A server that takes requests: where, in which process, and what it said it serves."""

    url: str
    process: subprocess.Popen[str]
    models: list[dict[str, Any]]
    grpc: str = ""

    @property
    def address(self) -> str:
        """host:port, as tritonclient wants it."""
        return urlsplit(self.url).netloc


@contextlib.contextmanager
def served(*packages: str | Path, options: tuple[str, ...] = ()) -> Iterator[Running]:
    """`edgekit serve` on a free port, ended with SIGTERM; its exit code must be 0."""
    command = [sys.executable, "-m", "edgekit", "serve", *map(str, packages), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            ready = json.loads(line)
            yield Running(ready["url"], process, ready["models"], ready["grpc"] or "")
        finally:
            process.terminate()
            _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "Traceback" not in log


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or its JSON part."""
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body[: int(length)] if length else self.body)


class Client:
    """One connection that sends exactly the bytes it is given."""

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=timeout_s)
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of `data`."""
        self.socket.sendall(data)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, *, head: bool = False
    ) -> Answer:
        """One request and its answer."""
        lines = {"Host": "test", "Content-Length": str(len(body)), **(headers or {})}
        text = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        self.send(f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode() + body)
        return self.read(head=head or method == "HEAD")

    def read(self, *, head: bool = False) -> Answer:
        """The next answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        top, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *lines = top.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = 0 if head else int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(status.split()[1]), headers, body)

    def closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        try:
            return self._buffer == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for a while."""
        return not self._buffer and not select.select([self.socket], [], [], seconds)[0]

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"closed after {self._buffer[:200]!r}")
        self._buffer += data


def infer_body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    """An inference request in JSON."""
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def tensor(name: str, shape: list[int], data: Any, datatype: str = "FP32") -> dict[str, Any]:
    """An input in JSON."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}
