"""Several workers that share one port, and who starts them again.

The supervisor binds a socket with SO_REUSEPORT for each worker and keeps a copy of it, so that connections which wait
in the socket of a worker that dies are taken by its successor. It runs no model and no thread, and forks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.serve.listen import Sockets, twin
from edgekit.serve.peers import Peers
from edgekit.serve.systemd import Notifier

LOGGER = logging.getLogger(__name__)

STEADY_S = 10.0
"""A worker that lived so long, ready, is started again at once; one that did not, after a pause that doubles."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0

STOP_S = 20.0
"""How long workers may take to end; then they are killed."""

BEAT_S = 1.0
"""How often a worker gives a sign of life."""

HANG_S = 30.0
"""A worker that gives none for so long is ended, and started again."""

ABORT_S = 3.0
"""How long a worker that hangs has to say where it does."""

Work = Callable[[Sockets, Peers, "Line"], int]
"""What a worker does: `work(sockets, peers, line)` serves, says when it is ready, and returns an exit code."""


class Line(Notifier):
    """What a worker tells its supervisor: that it is ready, and that it lives."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__()
        self._line, self.watchdog_s = line, BEAT_S

    def announce(self, text: str) -> None:
        """Requests are taken; `text` has no line breaks."""
        self._line.sendall(text.encode() + b"\n")

    def tell(self, *lines: str) -> None:
        """A sign of life is passed on; the rest the supervisor knows."""
        if "WATCHDOG=1" in lines:
            with contextlib.suppress(OSError):  # it is busy, and has enough of them to read
                self._line.send(b"\n", socket.MSG_DONTWAIT)

    def orphaned(self, stop: Callable[[], None]) -> None:
        """Have `stop` called, on a thread, when the supervisor is gone or wants an end."""
        import threading

        def wait() -> None:
            with contextlib.suppress(OSError):
                self._line.recv(1)
            stop()

        threading.Thread(target=wait, name="edgekit-supervised", daemon=True).start()


@dataclass
class _Worker:
    """One worker's place: its sockets, which outlive it, and the process that is in it now."""

    slot: int
    sockets: Sockets
    pid: int = 0
    line: socket.socket | None = None
    starts: int = 0
    began_s: float = 0.0
    ready: bool = False
    pause_s: float = 0.0
    start_at_s: float = 0.0
    heard_s: float = 0.0
    aborted: bool = False


class Supervisor:
    """Runs `work` in `count` processes until SIGTERM or SIGINT. For the main thread of a process without others."""

    def __init__(
        self,
        count: int,
        sockets: Sockets,
        work: Work,
        *,
        notifier: Notifier | None = None,
        hang_s: float | None = HANG_S,
    ) -> None:
        """`sockets` are bound with SO_REUSEPORT, or Unix sockets, which all workers take from.

        A worker that gives no sign of life for `hang_s` seconds is ended; None: it may take its time.
        """
        self._hang_s = hang_s
        self._work = work
        self._anchor = sockets
        self._notifier = notifier or Notifier()
        self._folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
        self._workers = [_Worker(slot, _own(sockets)) for slot in range(count)]
        self._stopping_s = 0.0
        self._wake, self._woken = socket.socketpair()
        self._failed: int | None = None
        self._said = ""

    def run(self, ready: Callable[[str], None]) -> int:
        """Returns the exit code: 0 after a stop, a worker's own if none could be started.

        The first worker is started alone: what keeps one from starting is said once. `ready` gets what the first
        worker said when all are there.
        """
        for one in (self._wake, self._woken):
            one.setblocking(False)
        before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        handlers = {n: signal.signal(n, lambda *_: None) for n in _SIGNALS}
        gc.collect()
        gc.freeze()  # workers share these pages as long as nobody writes to them
        try:
            return self._run(ready)
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._close()

    def _run(self, ready: Callable[[str], None]) -> int:
        self._start(self._workers[0])
        said = ""
        while True:
            self._wait()
            first = self._workers[0]
            if not said and first.ready:
                said = self._said
                for worker in self._workers[1:]:
                    self._start(worker)
            if said and ready is not _told and all(w.ready for w in self._workers):
                ready(said)
                self._notifier.ready(f"{len(self._workers)} workers")
                ready = _told
            if self._failed is not None and not said:
                return self._failed
            if self._stopping_s and not any(w.pid for w in self._workers):
                return 0
            self._look_after(begun=bool(said))

    def _wait(self) -> None:
        """Until something happens, or is due."""
        now = time.monotonic()
        due = [w.start_at_s for w in self._workers if not w.pid and w.start_at_s]
        if self._notifier.watchdog_s is not None:
            due.append(now + self._notifier.watchdog_s)
            self._notifier.alive()
        if self._stopping_s:
            due.append(self._stopping_s + STOP_S)
        if self._hang_s is not None:
            due += [w.heard_s + self._hang_s for w in self._workers if w.pid and w.ready]
        lines = {w.line: w for w in self._workers if w.line is not None}
        pause = max(0.0, min(due) - now) if due else None
        readable, _, _ = select.select([self._woken, *lines], [], [], pause)
        for one in readable:
            if one is self._woken:
                self._signalled(self._woken.recv(4096))
            else:
                self._heard(lines[one])
        self._reap()

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(again=bool(self._stopping_s))
            elif number == signal.SIGHUP:
                self._send(signal.SIGHUP)

    def _heard(self, worker: _Worker) -> None:
        assert worker.line is not None
        with contextlib.suppress(OSError):
            text = worker.line.recv(1 << 20).decode()
            if text:
                worker.ready, worker.heard_s = True, time.monotonic()
                if not self._said:
                    self._said = text.strip()

    def _reap(self) -> None:
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        now = time.monotonic()
        pid, worker.pid = worker.pid, 0
        if worker.line is not None:
            worker.line.close()
            worker.line = None
        if self._stopping_s:
            return
        if not worker.ready and worker.starts == 1 and worker.slot == 0 and not self._said:
            self._failed = code if code > 0 else 1
            return
        if worker.ready and now - worker.began_s >= STEADY_S:
            worker.pause_s = 0.0
        elif worker.starts > 1:
            worker.pause_s = min(max(FIRST_PAUSE_S, 2 * worker.pause_s), LONGEST_PAUSE_S)
        worker.ready = False
        worker.start_at_s = now + worker.pause_s
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        again = f"in {worker.pause_s:g} s" if worker.pause_s else "at once"
        LOGGER.warning("worker %d (process %d) %s; it is started again %s", worker.slot, pid, how, again)
        if worker.pause_s > 1.0:  # what comes meanwhile goes to the others instead of waiting
            worker.sockets.close()

    def _look_after(self, *, begun: bool) -> None:
        """Start what is due; end by force what does not end."""
        now = time.monotonic()
        if self._stopping_s:
            if now - self._stopping_s >= STOP_S:
                self._send(signal.SIGKILL)
            return
        for worker in self._workers:
            if begun and not worker.pid and worker.starts and worker.start_at_s <= now:
                self._start(worker)
            elif worker.pid and worker.ready and self._hang_s is not None and now - worker.heard_s >= self._hang_s:
                self._end(worker, now)

    def _end(self, worker: _Worker, now: float) -> None:
        """End a worker that hangs: it says where, if it can."""
        if not worker.aborted:
            LOGGER.error("worker %d (process %d) hangs; it is ended", worker.slot, worker.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
        worker.aborted = True
        worker.heard_s = now - (self._hang_s or 0.0) + ABORT_S

    def _stop(self, *, again: bool) -> None:
        if not again:
            self._notifier.stopping()
            self._stopping_s = time.monotonic()
            for worker in self._workers:  # else connections would wait in them for nobody
                worker.sockets.close()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:  # not waited for yet, so the number is still this process
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _start(self, worker: _Worker) -> None:
        if any(one.fileno() < 0 for one in (*worker.sockets.http, *worker.sockets.grpc, *worker.sockets.unix)):
            worker.sockets = _own(self._anchor)
        mine, theirs = socket.socketpair()
        worker.starts += 1
        worker.began_s, worker.ready, worker.start_at_s = time.monotonic(), False, 0.0
        worker.aborted = False
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            worker.pid, worker.line = pid, mine
            return
        code = 70
        try:
            mine.close()
            code = self._be(worker, theirs)
        except KeyboardInterrupt:
            code = 0
        except BaseException as error:
            if isinstance(error, EdgekitError):
                sys.stderr.write(f"edgekit: {error}\n")
                code = error.exit_code
            else:
                LOGGER.exception("a worker failed")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _be(self, worker: _Worker, line: socket.socket) -> int:
        """In the new process: serve."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
        for other in self._workers:
            if other is not worker:
                other.sockets.close()
                if other.line is not None:
                    other.line.close()
        self._wake.close()
        self._woken.close()
        self._anchor.close()
        os.environ.pop("NOTIFY_SOCKET", None)
        peers = Peers(self._folder, worker.slot, len(self._workers), starts=worker.starts)

        faulthandler.enable()  # says where it hangs
        try:
            return self._work(worker.sockets, peers, Line(line))
        finally:
            with contextlib.suppress(OSError):  # the last one clears up, if the supervisor cannot any more
                peers.path.unlink()
                self._folder.rmdir()

    def _close(self) -> None:
        for worker in self._workers:
            if worker.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            worker.sockets.close()
        self._anchor.remove_files()
        self._anchor.close()
        self._wake.close()
        self._woken.close()
        shutil.rmtree(self._folder, ignore_errors=True)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def _told(_text: str) -> None:
    """`ready` was called."""


def _own(sockets: Sockets) -> Sockets:
    """One worker's sockets: its own of each port, and the Unix sockets of all."""
    return Sockets(
        http=[twin(one) for one in sockets.http],
        grpc=[twin(one) for one in sockets.grpc],
        unix=[one.dup() for one in sockets.unix],
    )
