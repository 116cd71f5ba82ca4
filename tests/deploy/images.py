"""Dockerfiles as far as a machine without an engine can follow them: read, and replayed under a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.data import ROOT

OF_THE_SYSTEM = ("apt-get", "useradd")
"""What changes the image's operating system; a replay leaves it out."""

PLACES = ("/src", "/dist", "/opt/edgekit", "/models")
"""Where the images put things: a replay has them under its folder."""


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """What the steps called `keyword` say."""
        return [text for word, text in self.steps if word == keyword]

    def last(self, keyword: str) -> str:
        """What the last step called `keyword` says: the one that holds."""
        return self.all(keyword)[-1]


def stages_of(name: str) -> list[Stage]:
    """The stages of a Dockerfile of this project."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, text = line.strip().partition(" ")
        if word == "FROM":
            base, _, alias = text.partition(" AS ")
            stages.append(Stage(base, alias))
        elif word and stages:
            stages[-1].steps.append((word, text))
    return stages


class Replay:
    """Runs the steps of stages with this machine's Python, every place of an image under `root`."""

    def __init__(self, root: Path, **arguments: str) -> None:
        """`arguments` are build arguments: they win over the defaults of the file."""
        self.root = root
        self._arguments = arguments
        self._folder = root
        tools = root / "tools"  # the base image's `python` and `python3`
        tools.mkdir(parents=True)
        for tool in ("python", "python3"):
            (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            (tools / tool).chmod(0o755)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_NO")}
        self.environment["PIP_NO_COMPILE"] = "1"  # an image keeps byte code; here it would be thrown away
        self.environment["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"

    def inside(self, text: str) -> str:
        """`text` with the places of the image where the replay has them."""
        return re.sub(rf"(?<![\w./-])({'|'.join(PLACES)})(?![\w-])", lambda m: f"{self.root}{m[1]}", text)

    def run(self, stage: Stage) -> None:
        """All steps of `stage` that need no engine. Raises CalledProcessError, with what the step printed."""
        self._folder = self.root
        for word, text in stage.steps:
            getattr(self, f"_{word.lower()}", lambda _text: None)(text)

    def _arg(self, text: str) -> None:
        name, _, default = text.partition("=")
        self.environment[name] = self._arguments.get(name, default)

    def _workdir(self, text: str) -> None:
        self._folder = Path(self.inside(text))
        self._folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, text: str) -> None:
        if text.startswith("--from="):
            return  # all stages lie under one folder
        *sources, target = text.split()
        for source in sources:
            where = self._folder / self.inside(target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, where, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                where.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, where)

    def _run(self, text: str) -> None:
        if any(word in text for word in OF_THE_SYSTEM):
            return
        script = self.inside(text).replace("--no-cache-dir ", "")
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._folder,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )

    def _env(self, text: str) -> None:
        for name, value in re.findall(r"(\w+)=(\S+)", text):
            if name == "PATH":
                self.environment["PATH"] = self.inside(value).replace("$PATH", self.environment["PATH"])


def words(text: str) -> list[str]:
    """The JSON form of CMD, ENTRYPOINT and HEALTHCHECK … CMD."""
    found = json.loads(text[text.index("[") :])
    assert all(isinstance(word, str) for word in found)
    return list(found)


def free_ports() -> tuple[str, str]:
    """Two that nobody listens on."""
    with socket.socket() as one, socket.socket() as two:
        for s in (one, two):
            s.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1]), str(two.getsockname()[1])
