from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from edgekit.cluster import connected, kept_or_fetched, packed
from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.runtime.select import open_session
from tests.tiny import WEIGHT, tiny_package


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:no", "no.such.host.invalid"])
def test_a_cluster_that_does_not_answer_is_one_sentence(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = address.format(free.getsockname()[1])
    with pytest.raises(UsageError, match=r"No Ray cluster answers at .* --ray local"), connected(where):
        pass


def test_a_node_that_does_not_see_the_package_fetches_it_once(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    archive, fetched = packed(tiny), []

    def fetch() -> bytes:
        fetched.append(1)
        return archive

    path, digest = tiny.path, tiny.manifest.digest
    assert kept_or_fetched(path, digest, fetch).path == path, "it is here"
    shutil.rmtree(path)
    for _ in range(2):
        package = kept_or_fetched(path, digest, fetch)
        with open_session(package, threads=1) as session:
            np.testing.assert_allclose(session.run({"x": np.eye(4, dtype=np.float32)})["scores"], WEIGHT)
    tiny_package(path, weight=2 * WEIGHT)
    assert kept_or_fetched(path, digest, fetch).manifest.digest == digest, "another package under the same name"
    assert len(fetched) == 1
