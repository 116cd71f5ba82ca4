"""One running server with several packages, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve import packages
from tests.serve.running import Client, Running, served
from tests.tiny import tiny_package


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: a model repository."""
    path = tmp_path_factory.mktemp("repository")
    tiny_package(path / "tiny.edge")
    packages.identity_package(path / "identity.edge")
    packages.identity_package(path / "brain.edge", ("bfloat16", "float32"))
    packages.scaled_package(path / "scaled.edge")
    packages.words_package(path / "words.edge")
    packages.wide_package(path / "wide.edge")
    return path


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Running]:
    """`edgekit serve FOLDER`."""
    with served(folder) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    """A fresh connection to the server."""
    with Client(server.url) as connection:
        yield connection
