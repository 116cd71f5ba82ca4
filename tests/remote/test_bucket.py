"""URLs: what is one, what is said of those that cannot be used, and that secrets stay out of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgekit.errors import MissingDependencyError, RemoteError, UsageError
from edgekit.remote.bucket import Bucket, is_url, shown
from tests.remote.storages import web

pytest.importorskip("fsspec", reason="needs fsspec")


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://b/x.edge", "gs://b", "file:///models", "memory://x", "HTTPS://h/x.edge.tar")))
    assert not any(map(is_url, ("models", "/models/x.edge", "a:b", "./s3:/x", "://x", "C:\\models")))


def test_messages_hold_no_secrets() -> None:
    assert shown("https://me:secret@host:1/x.edge.tar?signature=secret#secret") == "https://host:1/x.edge.tar"
    with pytest.raises(RemoteError) as error:
        Bucket("memory://nothing?signature=secret").read("x", 10)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("protocol", "module", "extra"), [("s3", "s3fs", "edgekit[s3]"), ("gs", "gcsfs", "edgekit[gs]")]
)
def test_a_missing_driver_is_named(protocol: str, module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"needs a Python without {module}")
    with pytest.raises(MissingDependencyError) as error:
        Bucket(f"{protocol}://bucket/models")
    message = f"The driver for {protocol}:// URLs is not installed. Run: pip install '{extra}'"
    assert str(error.value) == message


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"'foo://x/y' cannot be used: Protocol not known: foo\. Try s3://"):
        Bucket("foo://x/y")


def test_what_is_larger_than_it_may_be_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    (tmp_path / "big").write_bytes(bytes(5000))
    with web(tmp_path) as site:
        assert Bucket(site.url).read("big", 5000) == bytes(5000)
        with pytest.raises(RemoteError, match="big' is larger than 4999 bytes"):
            Bucket(site.url).read("big", 4999)
