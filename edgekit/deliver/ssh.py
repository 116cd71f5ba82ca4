"""Another machine, reached by the system's ssh: one connection, commands whose every word is quoted.

Nothing that names a file or a folder is ever read by a shell as anything but a word, and names with odd characters are
refused before that. What runs there are POSIX shell scripts that take their words as "$1", "$2", ...
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from edgekit.errors import DeviceError, UsageError

COMMAND_VARIABLE = "EDGEKIT_SSH"
"""Environment variable: the command to use in place of ssh, with arguments ("ssh -F device.conf")."""

LOST = 255
"""What ssh returns when there is no connection (any more)."""

PIECE = 1 << 18
_KEPT_S = 60
_WORD = r"[A-Za-z0-9_.][A-Za-z0-9_.@+=,%-]*"
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*@)?(?:[A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])")
_FOLDER = re.compile(rf"(?:~/|/)?{_WORD}(?: *[A-Za-z0-9_.@+=,%/-]+)*/?|/|~")
_NAME = re.compile(rf"{_WORD}(?:/{_WORD})*")


@dataclass(frozen=True)
class Destination:
    """A machine as ssh takes it, and a folder there ("" for the home folder's own)."""

    host: str
    folder: str

    @classmethod
    def parse(cls, text: str, *, default: str | None = None) -> Destination:
        """`[user@]host:folder`; `[user@]host` if there is a `default` folder.

        Raises UsageError: neither, or with characters that have no place there.
        """
        host, colon, folder = text.partition("]:") if "[" in text.partition(":")[0] else text.partition(":")
        host += "]" if colon == "]:" else ""
        if not colon and default is not None:
            folder = default
        elif not colon or not folder:
            raise UsageError(f"'{text}' names no folder on a device; expected user@host:/folder.")
        if not _HOST.fullmatch(host):
            raise UsageError(f"'{host}' is not a host; expected user@host:/folder.")
        if not _FOLDER.fullmatch(folder):
            raise UsageError(
                f"Folder {folder!r} is refused: letters, digits, '/', spaces and any of _.@+=,%- can be in its name, "
                "and it does not start with '-'."
            )
        folder = folder.removeprefix("~/").rstrip("/") or ("/" if folder.startswith("/") else ".")
        return cls(host, "." if folder == "~" else folder)


def check_name(name: str) -> str:
    """`name`, if it is a file name that may travel. Raises UsageError: an odd one."""
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise UsageError(
            f"File name {name!r} is refused on a device: letters, digits and any of _.@+=,%- can be in it. "
            "Rename the file."
        )
    return name


@dataclass(frozen=True)
class Answer:
    """What a script there came to: its exit code, its standard output, and the last line of its errors."""

    code: int
    out: str
    said: str


class Host:
    """A machine to run scripts on. A context manager: the connection is made on entry, once for all scripts."""

    def __init__(
        self, name: str, *, port: int | None = None, identity: Path | None = None, options: Sequence[str] = ()
    ) -> None:
        """`name` as in `Destination.host`; `options` are ssh's own (-o)."""
        self.name = name
        self._ssh = shlex.split(os.environ.get(COMMAND_VARIABLE, "")) or ["ssh"]
        self._options = [word for option in options for word in ("-o", option)]
        self._options += ["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
        self._options += [] if port is None else ["-p", str(port)]
        self._options += [] if identity is None else ["-i", str(identity)]
        self._folder = ""

    def __enter__(self) -> Host:
        self._folder = tempfile.mkdtemp(prefix="edgekit-")
        self._options += ["-S", f"{self._folder}/s"]
        try:
            done = self._master("-M", "-N", "-f", "-o", f"ControlPersist={_KEPT_S}")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        if done.code == LOST:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise DeviceError(f"{self.name} cannot be reached: {done.said or 'ssh gave up'}. Try: ssh {self.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self._master("-O", "exit")
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, script: str, *words: str, data: bytes | Iterable[bytes] = b"") -> Answer:
        """Run `script` with `words` as "$1", ...; `data` is its standard input.

        Raises DeviceError: there is no ssh here.
        """
        with tempfile.TemporaryFile() as errors:
            process = self._start(script, words, errors=errors, stdin=subprocess.PIPE)
            with _ended(process):
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    for piece in (data,) if isinstance(data, bytes) else data:
                        process.stdin.write(piece)
                        process.stdin.flush()
                    process.stdin.close()
                out = process.stdout.read()
            return Answer(_code(process), out.decode(errors="replace"), _last_line(errors))

    def follow(self, script: str, *words: str, hear: Callable[[str], None]) -> Answer:
        """Run `script`; `hear` gets each line of its errors as it comes. Its standard input is open until this end is
        gone: so it can tell. Raises DeviceError as `run`."""
        said = ""
        with tempfile.TemporaryFile() as out:
            process = self._start(script, words, errors=subprocess.PIPE, stdin=subprocess.PIPE, out=out)
            with _ended(process):
                assert process.stderr is not None
                for line in process.stderr:
                    said = _words(line.decode(errors="replace")) or said
                    hear(said)
            out.seek(0)
            return Answer(_code(process), out.read().decode(errors="replace"), said)

    def fetch(
        self, script: str, *words: str, out: IO[bytes], progress: Callable[[int], None] = lambda _n: None
    ) -> Answer:
        """Run `script` and write its standard output to `out`. Raises DeviceError as `run`, OSError of `out`."""
        with tempfile.TemporaryFile() as errors:
            process = self._start(script, words, errors=errors, stdin=subprocess.DEVNULL)
            with _ended(process):
                assert process.stdout is not None
                while piece := process.stdout.read(PIECE):
                    out.write(piece)
                    progress(len(piece))
            return Answer(_code(process), "", _last_line(errors))

    def _start(
        self,
        script: str,
        words: Sequence[str],
        *,
        errors: IO[bytes] | int,
        stdin: int,
        out: IO[bytes] | int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        command = shlex.join(["sh", "-c", script, "edgekit", *words])
        try:
            return subprocess.Popen(
                [*self._ssh, *self._options, "--", self.name.replace("[", "").replace("]", ""), command],
                stdin=stdin,
                stdout=out,
                stderr=errors,
            )
        except OSError as error:
            raise self._no_ssh(error) from error

    def _master(self, *words: str) -> Answer:
        """The connection that all others go through: a password is asked for once."""
        with tempfile.TemporaryFile() as errors:
            command = [*self._ssh, *self._options, *words, "--", self.name.replace("[", "").replace("]", "")]
            try:
                done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=errors)
            except OSError as error:
                raise self._no_ssh(error) from error
            return Answer(done.returncode, "", _last_line(errors))

    def _no_ssh(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"'{self._ssh[0]}' cannot be run ({error.strerror}), so {self.name} cannot be reached. "
            "Install OpenSSH's client."
        )


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for the end of `process`; end it if the block is left by an error."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait()


def _code(process: subprocess.Popen[bytes]) -> int:
    """The exit code of what ran there; `LOST` also where ssh itself was killed."""
    return process.returncode if process.returncode >= 0 else LOST


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = map(_words, errors.read(1 << 20).decode(errors="replace").splitlines())
    return next((line for line in reversed(list(lines)) if line), "").rstrip(".")


def _words(line: str) -> str:
    """A line of a device as it may be shown on a terminal."""
    return "".join(c for c in line.strip() if c.isprintable())[:300]
