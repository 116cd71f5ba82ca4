"""Packages become served models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.runtime.fake import FakeSession
from edgekit.serve.library import load_models
from edgekit.serve.messages import RequestError
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from tests.serve.packages import wide_package
from tests.tiny import tiny_package


def fake(name: str, version: str = "1") -> Model:
    return Model(FakeSession([], [], lambda feed: {}), name=name, version=version)


def test_a_small_model_runs_where_requests_are_parsed_and_on_one_thread(tmp_path: Path) -> None:
    heard: list[str] = []
    (model,) = load_models([tiny_package(tmp_path / "tiny.edge").path], loaded=lambda m: heard.append(str(m)))
    assert model.worker.inline
    assert "1 thread" in model.session.device
    assert model.labels == ("red", "green", "blue")
    assert heard == [str(model)]
    assert heard[0].startswith("tiny: int8 (best of 2 variants")
    model.close()


def test_a_large_model_gets_a_thread_of_its_own(tmp_path: Path) -> None:
    (model,) = load_models([wide_package(tmp_path / "wide.edge").path], given={"threads": 2})
    assert not model.worker.inline
    assert "2 threads" in model.session.device
    model.close()


def test_models_are_found_by_name_and_version() -> None:
    repository = Repository([fake("a"), fake("b", "2")])
    assert repository.find("b", "2") is repository.find("b") is repository.models()[1]
    for name, version, words in (("c", "", "this server has a, b"), ("b", "1", "no version '1' here; it has '2'")):
        with pytest.raises(RequestError, match=words) as caught:
            repository.find(name, version)
        assert caught.value.status == 404
    with pytest.raises(UsageError, match="Two models are named 'a'"):
        Repository([fake("a"), fake("a")])
