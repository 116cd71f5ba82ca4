"""The page at /: what it may load, the sample that it sends, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import Client, Running, infer_body, served, tensor
from tests.tiny import tiny_package

FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


@pytest.mark.parametrize("path", FILES)
def test_its_files_come_with_a_strict_policy(client: Client, path: str) -> None:
    answer = client.ask("GET", path)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(FILES[path])
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.ask("POST", path).status == 405


def test_it_needs_nothing_of_other_machines_and_no_inline_code(client: Client) -> None:
    pages = [client.ask("GET", path).body.decode() for path in FILES]
    for text in pages:
        assert not re.findall(r"(?<!www\.w3\.org)//[a-z]+\.[a-z]+", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"<script>|\son[a-z]+=|\sstyle=", pages[0])
    assert "innerHTML" not in pages[2]


def test_a_sample_can_be_sent_as_it_comes(client: Client) -> None:
    request = client.ask("GET", "/v2/models/tiny/sample")
    assert request.status == 200
    answer = client.ask("POST", "/v2/models/tiny/infer", request.body)
    assert answer.status == 200
    best = answer.json["outputs"][0]["data"][0]
    assert best.split(":")[-1] in ("red", "green", "blue")
    assert client.ask("GET", "/v2/models/none/sample").status == 404
    scaled = client.ask("GET", "/v2/models/scaled/sample")
    assert scaled.status == 404
    assert "holds no samples" in scaled.json["error"]


def test_pages_of_other_sites_may_not_ask(client: Client) -> None:
    body = infer_body(tensor("x", [1], [3]))
    infer = "/v2/models/scaled/infer"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://test.evil"):
        refused = client.ask("POST", infer, body, {"Origin": origin})
        assert refused.status == 403
        assert "may not use this server" in refused.json["error"]
    assert client.ask("POST", infer, body, {"Origin": "http://test"}).status == 200  # Host of this client


# in a browser


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("no Chromium is installed, which shows the page")
    return found


class Browser:
    """Chromium without a window, spoken to by its DevTools protocol over a WebSocket."""

    def __init__(self, program: str, folder: Path) -> None:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,900")
        more = ("--disable-background-networking", "--disable-dev-shm-usage", "--disable-extensions")
        self._log = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            [program, *flags, *more, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
            stderr=self._log,
            stdout=subprocess.DEVNULL,
        )
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + 30.0
        while not port_file.exists() or "\n" not in port_file.read_text():
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.1)
        port = int(port_file.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        path = target["webSocketDebuggerUrl"].partition(str(port))[2]
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline() not in (b"\r\n", b""):
            pass
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        data = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        mask = os.urandom(4)
        head = bytes((0x81, 0xFE)) + len(data).to_bytes(2, "big")
        self._socket.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
        while True:
            message = json.loads(self._message())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def value(self, script: str) -> Any:
        """What a script gives, promises awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.1)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def _message(self) -> bytes:
        out = b""
        while True:
            first, length = self._stream.read(2)
            size = length & 0x7F
            if size >= 126:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            out += self._stream.read(size)
            if first & 0x80:
                return out


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    tiny_package(folder / "tiny.edge")
    (folder / "tokens").write_text("t" * 20)
    (folder / "tokens").chmod(0o600)
    with served(folder / "tiny.edge", options=("--token-file", str(folder / "tokens"))) as running:
        yield running


def test_a_browser_shows_models_and_sends_a_sample(browser: Browser, server: Running, tmp_path: Path) -> None:
    browser.call("Log.enable")
    browser.call("Runtime.enable")
    browser.call("Page.navigate", url=server.url + "/")
    browser.wait("document.querySelectorAll('#models tr').length > 4")
    assert browser.value("document.getElementById('state').textContent") == "ready"
    browser.value("document.getElementById('model').value = 'tiny'")
    browser.value("document.getElementById('fill').click()")
    browser.wait("document.getElementById('body').value.startsWith('{\"inputs\"')")
    browser.value("document.getElementById('go').click()")
    browser.wait("document.getElementById('answer').textContent.includes('outputs')")
    assert browser.value("document.getElementById('took').textContent").startswith("200, ")
    row = "[...document.querySelectorAll('#models tr')].find((r) => r.cells[0].textContent === 'tiny')"
    browser.value("for (let i = 0; i < 60; i++) document.getElementById('go').click()")
    browser.wait(f"Number({row}.cells[5].textContent) > 1")  # requests a second
    assert browser.value(f"{row}.cells[4].textContent") == "ready"
    browser.wait("document.querySelectorAll('#machine .card').length > 0")
    shot = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
    picture = Path(os.environ.get("EDGEKIT_SCREENSHOTS", tmp_path)) / "page.png"
    picture.write_bytes(shot)
    assert shot.startswith(b"\x89PNG")
    faults = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert faults == []  # nothing thrown, and nothing that the policy refused


def test_a_browser_is_asked_for_the_token(browser: Browser, own: Running) -> None:
    browser.call("Page.navigate", url=own.url + "/")
    browser.wait("document.getElementById('token-form')?.hidden === false")
    browser.value("document.getElementById('token').value = 't'.repeat(20)")
    browser.value("document.querySelector('#token-form button').click()")
    browser.wait("document.querySelectorAll('#models tr').length === 1")
    assert browser.value("document.getElementById('token-form').hidden") is True
