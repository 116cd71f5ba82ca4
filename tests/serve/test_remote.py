"""Packages in object storage behind a server: replaced while they are served, and served on when the storage fails."""

from __future__ import annotations

import logging
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.errors import RemoteError, SignatureError
from edgekit.package import Package
from edgekit.serve.app import App
from edgekit.serve.remote import RemoteLibrary
from edgekit.serve.repository import Repository
from edgekit.signature import TrustedKeys, new_key, sign
from tests.remote.storages import Web, web
from tests.serve.running import Client, served
from tests.serve.test_library import Serving, versioned

pytest.importorskip("fsspec", reason="needs fsspec")
pytest.importorskip("aiohttp", reason="needs aiohttp")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    versioned(tmp_path / "bucket/net.edge", "net", "1")
    return tmp_path / "bucket"


@pytest.fixture
def site(bucket: Path) -> Iterator[Web]:
    with web(bucket) as storage:
        yield storage


class RemoteServing(Serving):
    """The same with URLs, looked at in every poll."""

    def __init__(self, *paths: str | Path, look_s: float = 0.0) -> None:
        self.calls: queue.Queue[Callable[[], object]] = queue.Queue()
        self.library = RemoteLibrary(paths, look_s=look_s)
        self.app = App(Repository(self.library.load_all()), library=self.library)
        self.library.start(self.app, self.post, watch_s=None)


def test_what_changes_in_the_storage_is_served(bucket: Path, site: Web, tmp_path: Path) -> None:
    versioned(tmp_path / "local.edge", "local", "1", 7.0)
    serving = RemoteServing(site.url, tmp_path / "local.edge")
    assert (serving.score("net"), serving.score("local")) == (1.0, 7.0)
    versioned(bucket / "net.edge", "net", "1", 2.0)
    versioned(bucket / "other.edge", "other", "1", 3.0)
    serving.poll()
    assert (serving.score("net"), serving.score("other")) == (2.0, 3.0)
    (bucket / "serve.toml").write_text('[models.net]\nversions = "all"\n')
    versioned(bucket / "net2.edge", "net", "2", 4.0)
    shutil.rmtree(bucket / "other.edge")
    serving.poll()
    assert (serving.score("net", "1"), serving.score("net")) == (2.0, 4.0)
    assert [name for name, _, _ in serving.index()] == ["net", "net", "local"]
    versioned(bucket / "net.edge", "net", "1", 5.0)
    assert serving.load("net") is None, "a load on request looks at the storage first"
    assert serving.score("net", "1") == 5.0
    serving.close()


def test_a_storage_that_fails_is_said_once_and_the_old_is_served(
    bucket: Path, site: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="edgekit")
    serving = RemoteServing(site.url)
    faults: list[tuple[Callable[[], object], str]] = [
        (lambda: site.fails.update({"manifest.json": 403}), "may not be read: access was denied."),
        (lambda: site.fails.update({"manifest.json": 404}), "is not there (any more)."),
        (lambda: site.fails.update({"": 503}), "cannot be read ("),
        (lambda: (site.fails.clear(), (bucket / "net.edge/fp32.onnx").write_bytes(b"?")), "its SHA-256 differs"),
    ]
    versioned(bucket / "net.edge", "net", "1", 2.0)
    for fault, words in faults:
        caplog.clear()
        fault()
        for _ in range(3):
            serving.poll()
            assert serving.score("net") == 1.0
        (message,) = [r.getMessage() for r in caplog.records]
        assert words in message
        assert message.endswith("What was fetched before is served on.")
    versioned(bucket / "net.edge", "net", "1", 2.0)
    serving.poll()
    assert serving.score("net") == 2.0
    serving.close()


def test_a_storage_is_looked_at_as_often_as_asked(site: Web) -> None:
    serving = RemoteServing(site.url, look_s=60.0)
    asked = len(site.asked)
    for _ in range(3):
        serving.poll()
    assert len(site.asked) == asked
    serving.close()


def test_a_server_starts_without_its_storage_if_it_was_there_before(bucket: Path, tmp_path: Path) -> None:
    with web(bucket) as site:
        RemoteServing(site.url).close()
    serving = RemoteServing(site.url)
    assert serving.score("net") == 1.0
    serving.close()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RemoteError, match="cannot be read"):
        RemoteServing(site.url)


def test_signatures_come_along(bucket: Path, site: Web, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography")
    new_key(tmp_path / "team.key")
    sign(Package.open(bucket / "net.edge"), tmp_path / "team.key")
    library = RemoteLibrary([site.url], trust=TrustedKeys([tmp_path / "team.key.pub"]))
    (model,) = library.load_all()
    assert model.name == "net"
    model.close()
    (bucket / "net.edge/signature.json").unlink()
    with pytest.raises(SignatureError, match=r"net\.edge"):
        RemoteLibrary([site.url], trust=TrustedKeys([tmp_path / "team.key.pub"])).load_all()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_serves_urls(bucket: Path, site: Web, workers: str) -> None:
    with served(site.url, options=("--watch", "0.1", "--workers", workers)) as running:
        assert [m["name"] for m in running.models] == ["net"]
        versioned(bucket / "more.edge", "more", "1")
        found = 0
        for _ in range(100):
            with Client(running.url) as client:
                found = found + 1 if client.ask("GET", "/v2/models/more/ready").status == 200 else 0
            if found == 8:
                break
            time.sleep(0.1)
        assert found == 8, "every worker serves it"
