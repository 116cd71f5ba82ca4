"""A small process that sets a machine back to what it was, however the one that changed it ends.

It is started before anything is changed, is told what to do in the end, and then waits for its standard input to close:
that happens when the other says so, and also when it is interrupted, crashes or is killed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from edgekit.errors import BackendError

_ATTEMPTS, _PAUSE_S = 3, 1.0
_COMMAND_S = 60.0
"""How long a mode change may take; some restart services."""
_BEGIN_S = 20.0


class Guard:
    """Keeps the promise that `undo` is done when the `with` block ends, or this process does.

        with Guard({"argv": ["nvpmodel", "-m", "2"]}, manual="sudo nvpmodel -m 2"):
            ...

    `undo` is a command (`argv`), or a GPU's power cap (`uuid`, `milliwatts`). `manual` is what a person would type.
    """

    def __init__(self, undo: dict[str, Any], *, manual: str) -> None:
        self._undo, self._manual = undo, manual
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Guard:
        """Start it. Raises BackendError if it does not come up: then nothing may be changed."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.tune.guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C and a signal to the group are not for it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({**self._undo, "manual": self._manual}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        except OSError:
            answer = ""
        if answer != "ready":
            self._process.kill()
            raise BackendError("The process that would restore the power setting did not start, so nothing is changed.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Set back and wait for it. Raises BackendError if that failed."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        answer = process.stdout.readline().strip()
        process.stdout.close()
        process.wait(timeout=_BEGIN_S)
        if answer != "restored":
            raise BackendError(
                f"The power setting could not be set back ({answer or 'no answer'}). Run: {self._manual}"
            )


def undo_action(undo: dict[str, Any]) -> Callable[[], None]:
    """What sets back. Raises nothing; the call raises what goes wrong."""
    if "argv" in undo:
        return lambda: run_command(undo["argv"])
    return lambda: set_power_cap(undo["uuid"], undo["milliwatts"])


def run_command(argv: list[str]) -> None:
    """Run a program that changes a setting; a question of it (to reboot) is answered with no.

    Raises:
        BackendError: it cannot be run, or says that it failed.
    """
    try:
        done = subprocess.run(argv, input="no\n", capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{argv[0]} could not be run ({type(error).__name__})") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise BackendError(f"{' '.join(argv)} failed: {said[:160]}")


def set_power_cap(uuid: str, milliwatts: int) -> None:
    """Cap the board with that UUID. Raises BackendError where the driver refuses."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, milliwatts)
    except pynvml.NVMLError as error:
        raise BackendError(f"NVML refuses a power cap of {milliwatts / 1000:.0f} W ({error})") from error


def _main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    undo = json.loads(sys.stdin.readline())
    action = undo_action(undo)
    _say("ready")
    sys.stdin.read()  # until the other end is closed, or gone
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            action()
        except Exception as error:  # whatever it is, the next attempt may work
            reason = str(error)
        else:
            _say("restored")
            return 0
    if not _say(f"failed: {reason}"):
        with contextlib.suppress(OSError):
            sys.stderr.write(f"edgekit: the power setting could not be set back ({reason}). Run: {undo['manual']}\n")
    return 1


def _say(word: str) -> bool:
    """Tell the other process; False if it is gone."""
    try:
        sys.stdout.write(word + "\n")
        sys.stdout.flush()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(_main())
