"""A device for tests: a folder on this machine, reached through a stand-in for ssh or a real sshd on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data import ROOT

STAND_IN = Path(__file__).with_name("ssh.sh")


class Device:
    """A home folder with `models` in it; `set` changes how the stand-in behaves."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "device"
        self.models = self.home / "models"
        self.models.mkdir(parents=True)
        self._monkeypatch = monkeypatch
        self.set("HOME", str(self.home))
        self.set("LOG", str(folder / "ssh.log"))
        self.set("PATH", "/usr/bin:/bin")
        monkeypatch.setenv("EDGEKIT_SSH", str(STAND_IN))
        self.log = folder / "ssh.log"
        self._cut = folder / "cut"

    def set(self, name: str, value: str) -> None:
        self._monkeypatch.setenv(f"STAND_IN_{name}", value)

    def install_edgekit(self, folder: Path | None = None) -> Path:
        """An `edgekit` command, by default on its PATH."""
        where = folder or self.home / "bin"
        where.mkdir(parents=True, exist_ok=True)
        command = where / "edgekit"
        command.write_text(
            f'#!/bin/sh\nEDGEKIT_CACHE=$HOME/cache PYTHONPATH={ROOT} exec {sys.executable} -m edgekit "$@"\n'
        )
        command.chmod(0o755)
        if folder is None:
            self.set("PATH", f"{where}:/usr/bin:/bin")
        return command

    def cut_after(self, count: int, name: str) -> None:
        """The next time that file is sent, it is cut off after so many bytes, and the connection with it."""
        self._cut.write_text(f"{count} {name}")
        self.set("CUT", str(self._cut))

    def versions(self, name: str = "tiny.edge") -> list[str]:
        return sorted(p.name.partition("-")[0] for p in (self.models / ".edgekit" / name).glob("[!l]*"))


@contextmanager
def sshd(folder: Path) -> Iterator[list[str]]:
    """A real OpenSSH server for this user; the arguments of `edgekit push` that reach it. Skips where there is none."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if server is None or shutil.which("ssh-keygen") is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client (Debian: apt install openssh-server)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before it knows who comes
    log = folder / "sshd.log"
    process = subprocess.Popen([server, "-D", "-E", log, "-f", folder / "sshd_config"])
    try:
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
            time.sleep(0.05)
        options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known"]
        words = [word for option in options for word in ("--ssh-option", option)]
        yield ["-p", str(port), "-i", str(folder / "user"), *words]
    finally:
        process.terminate()
        process.wait()
