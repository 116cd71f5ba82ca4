"""Packages on disk behind a server: found, chosen by version, replaced while they are served."""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import IntegrityError, PackageError, UsageError
from edgekit.package import Package, create
from edgekit.serve.app import App
from edgekit.serve.library import Library, Source, load_models, package_folders
from edgekit.serve.messages import InferRequest, InferResponse, RequestError
from edgekit.serve.repository import Repository, chosen_versions
from edgekit.signature import TrustedKeys
from tests.serve.packages import copy_with_changed_byte, wide_package
from tests.tiny import WEIGHT, tiny_manifest, tiny_model, tiny_package


def versioned(path: Path, name: str, version: str, factor: float = 1.0) -> Package:
    """tiny.edge with scores times `factor`."""
    with create(path, force=True) as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model(WEIGHT * np.float32(factor)).SerializeToString())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        return writer.commit(tiny_manifest(name, version=version))


class Serving:
    """A library and an app, whose loop is turned by the test."""

    def __init__(self, *paths: Path, trust: TrustedKeys | None = None, **given: object) -> None:
        self.calls: queue.Queue[Callable[[], object]] = queue.Queue()
        self.library = Library(paths, given=given, trust=trust)
        self.app = App(Repository(self.library.load_all()), library=self.library)
        self.library.start(self.app, self.post, watch_s=None)

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        self.calls.put(partial(call, *arguments))

    def poll(self) -> None:
        self.library.poll()
        while not self.calls.empty():
            self.calls.get()()

    def order(self, order: Callable[[Callable[[Exception | None], None]], None]) -> Exception | None:
        """Give an order and turn the loop until it is answered."""
        answers: list[Exception | None] = []
        order(answers.append)
        while not answers:
            self.calls.get(timeout=20)()
        return answers[0]

    def load(self, name: str, **options: object) -> Exception | None:
        return self.order(lambda answer: self.app.load(name, options, answer))

    def unload(self, name: str, **options: bool) -> Exception | None:
        return self.order(lambda answer: self.app.unload(name, answer, **options))

    def score(self, name: str, version: str = "") -> float:
        """What the model makes of (1, 0, 0, 0): its factor."""
        answers: list[InferResponse | Exception] = []
        request = InferRequest({"x": np.eye(4, dtype=np.float32)[:1]})
        self.app.infer(self.app.repository.find(name, version), request, answers.append, self.post, 0)
        while not answers:
            self.calls.get(timeout=20)()
        assert isinstance(answers[0], InferResponse), answers[0]
        return float(answers[0].outputs[0].value[0, 0])

    def index(self) -> list[tuple[str, str, str]]:
        return [(m["name"], m["version"], m["state"]) for m in self.app.repository_index()]

    def close(self) -> None:
        self.app.close()


def test_packages_and_folders_of_packages(tmp_path: Path) -> None:
    (tmp_path / "repository" / "deeper").mkdir(parents=True)
    tiny_package(tmp_path / "repository" / "b.edge")
    tiny_package(tmp_path / "repository" / "deeper" / "c.edge")
    (tmp_path / "repository" / "notes.txt").write_text("")
    (tmp_path / "repository" / ".b.edge.staging-1-0").mkdir()
    found = package_folders([tmp_path / "repository", tmp_path / "other.edge"])
    assert [p.name for p in found] == ["b.edge", "c.edge", "other.edge"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no package"):
        package_folders([tmp_path / "empty"])


def test_what_cannot_be_served(tmp_path: Path) -> None:
    tiny = tiny_package(tmp_path / "tiny.edge").path
    twin = shutil.copytree(tiny, tmp_path / "twin.edge")
    changed = copy_with_changed_byte(wide_package(tmp_path / "wide.edge", 8).path, tmp_path / "changed.edge")
    (tmp_path / "file.edge").write_text("")
    with pytest.raises(UsageError, match="are both named 'tiny' in version '1'"):
        load_models([tiny, twin])
    with pytest.raises(IntegrityError, match="'fp32.onnx' in 'changed.edge' was changed"):
        load_models([tiny, changed])
    with pytest.raises(PackageError, match="not an edgekit package"):
        load_models([tmp_path / "file.edge"])
    with pytest.raises(PackageError, match="does not exist"):
        load_models([tmp_path / "nothing.edge"])
    with pytest.raises(UsageError, match="no variant 'int4'; it has fp32, int8"):
        load_models([tiny], given={"variant": "int4"})


def test_versions_are_chosen_as_people_count() -> None:
    sources = [Source(Path(v), "net", v, ()) for v in ("9", "10", "1.2", "2")]

    def chosen(policy: str | int | tuple[str, ...]) -> list[str]:
        return [s.version for s in chosen_versions(sources, policy)]

    assert chosen("latest") == ["10"]
    assert chosen(2) == ["9", "10"]
    assert chosen("all") == ["1.2", "2", "9", "10"]
    assert chosen(("2", "9", "77")) == ["2", "9"]


def test_versions_side_by_side(tmp_path: Path) -> None:
    for version, factor in (("9", 9.0), ("10", 10.0)):
        versioned(tmp_path / f"net-{version}.edge", "net", version, factor)
    latest = Serving(tmp_path)
    assert latest.index() == [("net", "10", "READY")]
    assert latest.score("net") == 10
    (tmp_path / "serve.toml").write_text("[models.net]\nversions = 'all'\n")
    latest.poll()
    assert latest.index() == [("net", "9", "READY"), ("net", "10", "READY")]
    assert (latest.score("net"), latest.score("net", "9")) == (10, 9)
    assert latest.app.model_metadata("net")["versions"] == ["9", "10"]
    assert [s["version"] for s in latest.app.statistics("net")["model_stats"]] == ["9", "10"]
    with pytest.raises(RequestError, match="no version '8' here; it has '10', '9'"):
        latest.app.model_metadata("net", "8")
    shutil.rmtree(tmp_path / "net-10.edge")
    latest.poll()
    assert latest.index() == [("net", "9", "READY")]
    assert latest.score("net") == 9
    latest.close()


def test_packages_are_added_replaced_and_removed(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1")
    serving = Serving(tmp_path)
    first = serving.app.repository.find("a")
    serving.poll()
    assert serving.app.repository.find("a") is first
    versioned(tmp_path / "b.edge", "b", "1", 2.0)
    versioned(tmp_path / "a.edge", "a", "1", 3.0)
    serving.poll()
    assert (serving.score("a"), serving.score("b")) == (3, 2)
    versioned(tmp_path / "a.edge", "a", "2", 4.0)
    serving.poll()
    assert serving.index() == [("a", "2", "READY"), ("b", "1", "READY")]
    shutil.rmtree(tmp_path / "b.edge")
    serving.poll()
    assert serving.index() == [("a", "2", "READY")]
    with pytest.raises(RequestError, match="'b' is not served here; this server has a"):
        serving.app.repository.find("b")
    serving.close()


def test_a_bad_package_never_replaces_a_good_one(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1", 1.0)
    serving = Serving(tmp_path)
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "a.edge", good)

    def served_still(words: str) -> None:
        serving.poll()
        assert serving.score("a") == 1
        reasons = [m["reason"] for m in serving.app.repository_index()]
        assert any(words in r for r in reasons), reasons

    model = tmp_path / "a.edge" / "fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")  # other bytes than the manifest vouches for
    served_still("'fp32.onnx' in 'a.edge' was changed")
    (tmp_path / "a.edge" / "manifest.json").write_text("{")
    serving.poll()
    assert serving.score("a") == 1
    versioned(tmp_path / "a.edge", "a", "2", 2.0)
    (tmp_path / "a.edge" / "fp32.onnx").unlink()
    served_still("lacks its file 'fp32.onnx'")
    shutil.rmtree(tmp_path / "a.edge")
    good.rename(tmp_path / "a.edge")
    os.utime(tmp_path / "a.edge" / "fp32.onnx")
    serving.poll()
    assert serving.index()[0] == ("a", "1", "READY")
    assert serving.app.repository_index()[0]["reason"] == ""
    serving.close()


def test_a_package_whose_outputs_are_not_its_samples_is_not_served(tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny.edge")
    serving = Serving(tmp_path, variant="fp32")
    package = Package.open(tmp_path / "tiny.edge")
    with package.edit() as writer:
        writer.path("fp32.onnx").write_bytes(tiny_model(-WEIGHT).SerializeToString())
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        writer.commit()
    serving.poll()
    assert serving.score("tiny") == 1
    assert "output 'scores' differs" in serving.app.repository_index()[0]["reason"]
    serving.close()


def test_requests_in_flight_finish_on_the_old_one(tmp_path: Path) -> None:
    wide_package(tmp_path / "wide.edge", 1 << 20)
    serving = Serving(tmp_path)
    old = serving.app.repository.find("wide")
    answers: list[InferResponse | Exception] = []
    for i in range(3):
        request = InferRequest({"x": np.full((1, 1 << 20), i, np.float32)})
        serving.app.infer(old, request, answers.append, serving.post, 0)
    assert serving.load("wide") is None
    assert serving.app.repository.find("wide") is not old
    late = InferRequest({"x": np.full((1, 1 << 20), 3, np.float32)})
    serving.app.infer(old, late, answers.append, serving.post, 0)  # the door found the old one just before
    while len(answers) < 4:
        serving.calls.get(timeout=20)()
    assert [float(a.outputs[0].value[0, 0]) for a in answers if isinstance(a, InferResponse)] == [1, 2, 3, 4]
    assert old.stats.success.count == 3
    serving.close()


def test_loading_and_unloading_on_request(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1", 1.0)
    serving = Serving(tmp_path)
    assert serving.unload("a") is None
    assert serving.index() == [("a", "1", "UNAVAILABLE")]
    assert serving.app.repository_index(ready_only=True) == []
    with pytest.raises(RequestError, match="'a' is not ready: unloaded"):
        serving.app.repository.find("a")
    versioned(tmp_path / "a.edge", "a", "1", 5.0)
    serving.poll()  # it stays unloaded until it is loaded
    assert serving.index() == [("a", "1", "UNAVAILABLE")]
    assert serving.load("a", instances=3) is None
    assert serving.score("a") == 5
    assert serving.app.model_config("a")["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    for error, status, words in (
        (serving.load("b"), 404, "'b' is not among this server's packages, which are a"),
        (serving.unload("b"), 404, "'b' is not loaded"),
        (serving.load("a", variant="int4"), 400, "'a' was not loaded: 'a.edge' has no variant 'int4'"),
    ):
        assert isinstance(error, RequestError)
        assert error.status == status
        assert words in str(error)
    assert serving.score("a") == 5
    serving.close()


def test_a_twin_takes_over_when_the_first_is_removed(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1", 1.0)
    serving = Serving(tmp_path)
    versioned(tmp_path / "b.edge", "a", "1", 2.0)
    serving.poll()
    assert serving.score("a") == 1
    shutil.rmtree(tmp_path / "a.edge")
    serving.poll()
    assert serving.score("a") == 2
    serving.close()


def test_a_mistake_that_is_taken_back_leaves_no_reason(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1")
    serving = Serving(tmp_path)
    served = serving.app.repository.find("a")
    (tmp_path / "a.toml").write_text("instances = 0\n")
    serving.poll()
    assert "served as it was" in serving.app.repository_index()[0]["reason"]
    (tmp_path / "a.toml").unlink()
    serving.poll()
    assert serving.app.repository_index()[0]["reason"] == ""
    assert serving.app.repository.find("a") is served
    serving.close()


def test_control_can_be_withheld(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1")
    serving = Serving(tmp_path)
    serving.app.control = False
    with pytest.raises(RequestError, match="does not load or unload models on request") as caught:
        serving.app.load("a", {}, lambda error: None)
    assert caught.value.status == 403
    serving.close()


def test_options_that_change_reload_the_model(tmp_path: Path) -> None:
    versioned(tmp_path / "a.edge", "a", "1")
    serving = Serving(tmp_path)
    (tmp_path / "a.toml").write_text("instances = 4\n")
    serving.poll()
    assert serving.app.repository.find("a").worker.instances == 4
    (tmp_path / "a.toml").write_text("instances = 'many'\n")
    serving.poll()
    assert serving.app.repository.find("a").worker.instances == 4
    assert "Expected `int" in serving.app.repository_index()[0]["reason"]
    serving.close()
