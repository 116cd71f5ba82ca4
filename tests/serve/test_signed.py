"""A server that takes signed packages only: at the start, while it serves, and on request."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edgekit.errors import SignatureError
from edgekit.serve.library import Library
from edgekit.signature import TrustedKeys, new_key, sign
from tests.serve.test_library import Serving, versioned


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "team.key")
    new_key(tmp_path / "other.key")
    return tmp_path / "team.key"


def trust(key: Path) -> TrustedKeys:
    return TrustedKeys([key.with_name(f"{key.name}.pub")])


def test_nothing_starts_with_a_package_that_is_not_signed_by_a_trusted_key(tmp_path: Path, key: Path) -> None:
    package = versioned(tmp_path / "net.edge", "net", "1")
    for prepare, what in ((None, "is not signed"), (tmp_path / "other.key", "trusted here is")):
        if prepare is not None:
            sign(package, prepare)
        with pytest.raises(SignatureError, match=what):
            Library([tmp_path], trust=trust(key)).load_all()
    sign(package, key)
    (model,) = Library([tmp_path], trust=trust(key)).load_all()
    model.close()


def test_a_bad_one_never_replaces_a_good_one(tmp_path: Path, key: Path) -> None:
    """By the watch and on request; a good one does."""
    sign(versioned(tmp_path / "net.edge", "net", "1"), key)
    serving = Serving(tmp_path, trust=trust(key))
    bad = versioned(tmp_path / "net.edge", "net", "1", factor=3.0)
    serving.poll()
    assert serving.score("net") == 1
    assert "is not signed" in serving.app.repository_index()[0]["reason"]
    refused = serving.load("net")
    assert refused is not None
    assert "is not signed" in str(refused)
    assert serving.score("net") == 1
    sign(bad, tmp_path / "other.key")
    serving.poll()
    assert serving.score("net") == 1
    sign(bad, key)
    serving.poll()
    assert serving.score("net") == 3
    (tmp_path / "net.edge" / "stray.so").write_bytes(b"")
    assert "no part of the package" in str(serving.load("net"))
    assert serving.score("net") == 3
    sign(versioned(tmp_path / "next.edge", "net", "2", factor=5.0), tmp_path / "other.key")
    serving.poll()
    assert serving.score("net") == 3
    assert "next" not in {m.name for m in serving.app.repository.models()}


def test_keys_are_read_again_and_what_was_refused_is_tried_again(tmp_path: Path, key: Path) -> None:
    sign(versioned(tmp_path / "net.edge", "net", "1"), key)
    serving = Serving(tmp_path, trust=trust(key))
    new = versioned(tmp_path / "net.edge", "net", "1", factor=2.0)
    sign(new, tmp_path / "other.key")
    serving.poll()
    assert serving.score("net") == 1
    key.with_name("team.key.pub").write_bytes((tmp_path / "other.key.pub").read_bytes())
    serving.library.reload_keys()
    end = time.monotonic() + 20
    while serving.score("net") != 2 and time.monotonic() < end:
        serving.poll()
    assert serving.score("net") == 2


def test_pipelines_have_no_signature(tmp_path: Path, key: Path) -> None:
    sign(versioned(tmp_path / "net.edge", "net", "1"), key)
    (tmp_path / "two.pipeline.toml").write_text(
        'outputs = ["first"]\n[[stages]]\nmodel = "net"\noutputs = {first = "scores"}\n'
    )
    with pytest.raises(SignatureError, match="takes signed packages only"):
        Library([tmp_path], trust=trust(key)).load_all()


def test_on_the_command_line(tmp_path: Path, key: Path) -> None:
    """The whole way: refused, then served, then a changed package on disk is not taken."""
    (tmp_path / "models").mkdir()
    package = versioned(tmp_path / "models" / "net.edge", "net", "1")
    command = [sys.executable, "-m", "edgekit", "serve", tmp_path / "models", "--port", "0", "--grpc-port", "off"]
    command += ["--watch", "0.1", "--require-signature", tmp_path / "team.key.pub"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr == (
        "edgekit: 'net.edge' is not signed. Sign it where it was made: edgekit sign X.edge --key KEY\n"
    )
    sign(package, key)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = ""
            for line in server.stderr:
                if line.startswith("ready on "):
                    url = line.split()[2].rstrip(",")
                    break
            versioned(tmp_path / "models" / "net.edge", "net", "1", factor=9.0)
            assert "is not signed" in server.stderr.readline()
            request = urllib.request.Request(f"{url}/v2/repository/models/net/load", data=b"{}", method="POST")
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.urlopen(request, timeout=20)
            assert answer.value.code == 400
            assert b"is not signed" in answer.value.read()
            with urllib.request.urlopen(f"{url}/v2/models/net/ready", timeout=20) as ready:
                assert ready.status == 200
        finally:
            server.terminate()
            server.wait(timeout=20)
