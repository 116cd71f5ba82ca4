"""TLS at both doors: who is let in, what is agreed on, and certificates that change while the server runs."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.server import Server
from edgekit.serve.tls import TlsFiles
from edgekit.tensors import TensorSpec
from tests.serve.certificates import Pair, authority, signed
from tests.serve.running import Client, infer_body, tensor

INFER = "/v2/models/net/infer"
BODY = infer_body(tensor("x", [1], [3]))


def model(latency_s: float = 0.0) -> Model:
    spec = [TensorSpec("x", "float32", ("n",))]
    double: Callable[..., Any] = lambda feed: {"y": feed["x"] * 2}  # noqa: E731
    session = FakeSession(spec, [TensorSpec("y", "float32", ("n",))], double, latency_s=latency_s)
    return Model(session, name="net")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Pair:
    return authority(folder, "ca")


@pytest.fixture(scope="module")
def own(folder: Path, ca: Pair) -> Pair:
    return signed(folder, "server", ca)


class TlsClient(Client):
    """A client that has agreed on TLS."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        super().__init__(url)
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")


def trusting(ca: Pair, protocol: str = "http/1.1", client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.cert))
    context.set_alpn_protocols([protocol])
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context


def test_both_doors_speak_tls_and_agree_on_their_protocols(ca: Pair, own: Pair) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    with Server([model()], port=0, grpc_port=0, tls=TlsFiles(cert=own.cert, key=own.key)) as server:
        assert server.url.startswith("https://")
        with TlsClient(server.url, trusting(ca)) as client:
            assert client.socket.selected_alpn_protocol() == "http/1.1"
            assert client.socket.version() == "TLSv1.3"
            assert client.ask("POST", INFER, BODY).json["outputs"][0]["data"] == [6]
            big = infer_body(tensor("x", [100_000], list(range(100_000))))
            assert client.ask("POST", INFER, big).json["outputs"][0]["data"][-1] == 199_998
        with grpcclient.InferenceServerClient(
            server.grpc_address, ssl=True, root_certificates=str(ca.cert)
        ) as client_of_grpc:
            x = grpcclient.InferInput("x", [1], "FP32")
            x.set_data_from_numpy(np.array([4], np.float32))
            assert client_of_grpc.infer("net", [x]).as_numpy("y")[0] == 8
        with Client(server.url) as plain:  # who speaks no TLS is not understood
            plain.send(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert plain.closed()


def test_old_versions_of_tls_are_refused(ca: Pair, own: Pair) -> None:
    context = trusting(ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        Server([model()], port=0, tls=TlsFiles(cert=own.cert, key=own.key)) as server,
        pytest.raises(ssl.SSLError),
    ):
        TlsClient(server.url, context)


def test_mutual_tls_asks_clients_for_a_certificate_of_the_authority(folder: Path, ca: Pair, own: Pair) -> None:
    known, stranger = signed(folder, "client", ca), signed(folder, "stranger", authority(folder, "other"))
    files = TlsFiles(cert=own.cert, key=own.key, client_ca=ca.cert)
    with Server([model()], port=0, tls=files) as server:
        with TlsClient(server.url, trusting(ca, client=known)) as client:
            assert client.ask("POST", INFER, BODY).status == 200
        for nobody in (None, stranger):
            with (
                pytest.raises((ssl.SSLError, ConnectionError)),
                TlsClient(server.url, trusting(ca, client=nobody)) as client,
            ):
                client.ask("GET", "/v2")  # TLS 1.3: refused with the first answer


def test_a_new_certificate_is_taken_over_while_a_request_runs(folder: Path, ca: Pair, own: Pair) -> None:
    pair = Pair(folder / "live.pem", folder / "live.key")
    pair.cert.write_bytes(own.cert.read_bytes())
    pair.key.write_bytes(own.key.read_bytes())

    def serial(server: Server) -> str:
        with TlsClient(server.url, trusting(ca)) as client:
            found = client.socket.getpeercert()
            assert isinstance(found, dict)
            return str(found["serialNumber"])

    with (
        Server([model(0.5)], port=0, tls=TlsFiles(cert=pair.cert, key=pair.key)) as server,
        TlsClient(server.url, trusting(ca)) as busy,
    ):
        first = serial(server)
        busy.send(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        new = signed(folder, "renewed", ca)
        pair.cert.write_bytes(new.cert.read_bytes())
        server.reload()  # half done: certificate and key are no pair
        time.sleep(0.2)
        assert serial(server) == first
        pair.key.write_bytes(new.key.read_bytes())
        server.reload()
        end = time.monotonic() + 5.0
        while serial(server) == first:
            assert time.monotonic() < end
        assert busy.read().status == 200
        assert busy.ask("POST", INFER, BODY).status == 200


def test_a_client_that_never_agrees_holds_up_nobody(ca: Pair, own: Pair) -> None:
    with Server([model()], port=0, tls=TlsFiles(cert=own.cert, key=own.key)) as server:
        parts = urlsplit(server.url)
        silent = [socket.create_connection((parts.hostname, parts.port)) for _ in range(20)]
        with TlsClient(server.url, trusting(ca)) as client:
            assert client.ask("POST", INFER, BODY).status == 200
        for one in silent:
            one.close()


def test_limits_hold_with_tls_too(ca: Pair, own: Pair) -> None:
    limits = Limits(connections=1, idle_s=0.2)
    with Server([model()], port=0, limits=limits, tls=TlsFiles(cert=own.cert, key=own.key)) as server:
        with TlsClient(server.url, trusting(ca)) as first, TlsClient(server.url, trusting(ca)) as second:
            assert second.read().status == 503
            assert first.closed()  # idle for too long
        with TlsClient(server.url, trusting(ca)) as third:
            assert third.ask("POST", INFER, b"{").status == 400


def test_files_that_cannot_be_used_are_one_sentence(folder: Path, ca: Pair, own: Pair) -> None:
    (folder / "text").write_text("no PEM")
    for cert, key, authority_, words in (
        (folder / "no", own.key, None, "No such file"),
        (own.cert, ca.key, None, "key values mismatch"),
        (folder / "text", own.key, None, "belong together"),
        (own.cert, own.key, folder / "no", "Authority"),
        (own.cert, own.key, folder / "text", "Authority"),
    ):
        with pytest.raises(UsageError, match=words):
            TlsFiles(cert=cert, key=key, client_ca=authority_).context("h2")
