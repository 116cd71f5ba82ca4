"""Tokens: who is asked for one, which is enough for what, over HTTP and gRPC, and files that change."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.auth import Tokens
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.tensors import TensorSpec
from tests.serve.running import Client, infer_body, tensor

USER, BOSS = "u" * 24, "control-0123456789abcdef=="
INFER = "/v2/models/net/infer"
BODY = infer_body(tensor("x", [1], [3]))


def server_with(tokens: Tokens, **options: int) -> Server:
    spec = [TensorSpec("x", "float32", ("n",))]
    session = FakeSession(spec, [TensorSpec("y", "float32", ("n",))], lambda feed: {"y": feed["x"]})
    return Server([Model(session, name="net")], port=0, tokens=tokens, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# clients\n{USER}\n\n  {BOSS}   control\n")
    path.chmod(0o600)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def metadata(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


LOAD = "/v2/repository/models/net/unload"


@pytest.mark.parametrize(
    ("method", "path", "nobody", "user", "boss"),
    [
        ("GET", "/v2/health/live", 200, 200, 200),
        ("GET", "http://a/v2/health/ready?x=1", 200, 200, 200),
        ("GET", "/v2", 401, 200, 200),
        ("GET", "/metrics", 401, 200, 200),
        ("GET", "/v2/models/net", 401, 200, 200),
        ("POST", INFER, 401, 200, 200),
        ("POST", "/v2/repository/index", 401, 200, 200),
        ("POST", LOAD, 401, 403, 403),  # there is no library here: control is refused for another reason
        ("POST", "/v2/repository/models/a%2Fb/load", 401, 403, 403),
        ("POST", "/v2/repositor%79/models/net/load", 401, 403, 403),
        ("POST", "http://a/v2/repository/models/net/load?q", 401, 403, 403),
        ("GET", "/v2/logging", 401, 403, 200),
        ("GET", "/v2/models/net/trace/setting", 401, 403, 200),
        ("GET", "/nothing", 401, 404, 404),
        ("GET", "/v2/%FF", 400, 400, 400),
    ],
)
def test_who_may_ask_what(file: Path, method: str, path: str, nobody: int, user: int, boss: int) -> None:
    with server_with(Tokens(file)) as server, Client(server.url) as client:
        body = BODY if path == INFER else b""
        answers = [client.ask(method, path, body, h) for h in ({}, bearer(USER), bearer(BOSS))]
        assert [a.status for a in answers] == [nobody, user, boss]
        if nobody == 401:
            assert answers[0].headers["www-authenticate"].startswith("Bearer")
            assert "token" in answers[0].json["error"]
        if user == 403:
            assert "scope control" in answers[1].json["error"]
            if method == "POST":
                assert "scope" not in answers[2].json["error"]


@pytest.mark.parametrize(
    "header",
    [USER, f"Basic {USER}", "Bearer", "Bearer ", f"Bearer {USER}x", f"Bearer {USER[:-1]}", f"Bearer {USER} {BOSS}"],
)
def test_what_is_no_token(file: Path, header: str) -> None:
    with server_with(Tokens(file)) as server, Client(server.url) as client:
        assert client.ask("POST", INFER, BODY, {"Authorization": header}).status == 401
        assert client.ask("POST", INFER, BODY, {"Authorization": f"bEARER   {USER} "}).status == 200


def test_a_header_given_twice_is_refused(file: Path) -> None:
    with server_with(Tokens(file)) as server, Client(server.url) as client:
        line = f"Authorization: Bearer {USER}\r\n"
        client.send(f"GET /v2 HTTP/1.1\r\nHost: a\r\n{line}{line}\r\n".encode())
        assert client.read().status == 400


def test_health_can_ask_for_a_token_too(file: Path) -> None:
    with server_with(Tokens(file, open_health=False)) as server, Client(server.url) as client:
        assert client.ask("GET", "/v2/health/ready").status == 401
        assert client.ask("GET", "/v2/health/ready", headers=bearer(USER)).status == 200


def test_grpc_asks_too(file: Path) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    utils = pytest.importorskip("tritonclient.utils")
    with (
        server_with(Tokens(file), grpc_port=0) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):

        def code(call: str, token: str = "") -> str:
            headers = metadata(token) if token else None
            arguments = {"load_model": ["net"], "get_log_settings": [], "get_server_metadata": []}.get(call, [])
            try:
                getattr(client, call)(*arguments, headers=headers)
            except utils.InferenceServerException as error:
                return str(error.status()).removeprefix("StatusCode.")
            return "OK"

        assert code("is_server_ready") == "OK"
        assert code("get_server_metadata") == "UNAUTHENTICATED"
        assert code("get_server_metadata", "x" * 20) == "UNAUTHENTICATED"
        assert code("get_server_metadata", USER) == "OK"
        assert code("get_log_settings", USER) == "PERMISSION_DENIED"
        assert code("get_log_settings", BOSS) == "OK"
        assert code("load_model", USER) == "PERMISSION_DENIED"


def test_tokens_are_read_again_and_a_bad_file_changes_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    utils = pytest.importorskip("tritonclient.utils")
    new = "n" * 32
    with (
        server_with(Tokens(file), grpc_port=0) as server,
        Client(server.url) as client,
        grpcclient.InferenceServerClient(server.grpc_address) as calls,
    ):
        assert calls.get_server_metadata(headers=metadata(USER)).name == "edgekit"
        file.write_text("short\n")
        with caplog.at_level(logging.ERROR):
            server.reload()
            wait_for(lambda: "stay as they were" in caplog.text)
        assert client.ask("GET", "/v2", headers=bearer(USER)).status == 200
        file.write_text(new)
        server.reload()
        wait_for(lambda: client.ask("GET", "/v2", headers=bearer(USER)).status == 401)
        assert client.ask("GET", "/v2", headers=bearer(new)).status == 200
        with pytest.raises(utils.InferenceServerException, match="not known"):  # on the connection that it was good on
            calls.get_server_metadata(headers=metadata(USER))


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("short\n", "line 1: expected 16 or more"),
        (f"{USER}\n{USER} admin\n", "line 2: there is no scope 'admin'"),
        ("ü" * 20, "expected 16 or more"),
    ],
)
def test_files_that_are_none_of_tokens(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=words) as caught:
        Tokens(path)
    assert USER not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        Tokens(tmp_path / "none")


def test_a_file_that_all_can_read_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        Tokens(file)
    assert "chmod 600" in caplog.text
