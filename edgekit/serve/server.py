"""A server: models behind a door, from start to the last answer."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from edgekit._lazy import require
from edgekit.errors import EdgekitError, UsageError
from edgekit.serve.app import App
from edgekit.serve.http import Door, Limits
from edgekit.serve.repository import Model, Repository
from edgekit.serve.routes import Routes

DRAIN_S = 10.0
"""How long a server that was told to stop waits for requests in flight."""


class Server:
    """Serves models over HTTP. `run` serves on the calling thread; a `with` block, on a thread of its own:

        with Server([Model(session, name="net")], port=0) as server:
            requests.get(server.url + "/v2/health/ready")

    The server owns the models and closes them when it ends. A server runs once.
    """

    def __init__(
        self, models: Sequence[Model], *, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None
    ) -> None:
        """Port 0 takes a free one: see `url` once it runs. Raises UsageError if two models have one name."""
        self.app = App(Repository(models))
        self._host, self._port = host, port
        self._limits = limits or Limits()
        self._url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where the server answers, such as http://127.0.0.1:8000; empty before it runs."""
        return self._url

    def run(self, *, ready: Callable[[str], None] = lambda _url: None, signals: bool = False) -> None:
        """Serve until `stop`, then answer what is in flight and return.

        `ready` is called with the URL once requests are accepted. With `signals` (main thread only) the process is
        the server's: SIGINT and SIGTERM stop it, and a second one ends it without waiting.

        Raises:
            EdgekitError: the port is taken or not allowed.
            UsageError: the host is not an address of this machine.
        """
        loop = require("uvloop", why="serve").new_event_loop()
        try:
            loop.run_until_complete(self._serve(ready, signals))
        finally:
            self.app.close()
            loop.close()

    def stop(self) -> None:
        """Begin to end: accept nothing new, answer what is in flight. Safe from any thread, and more than once."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._run_on_thread, name="edgekit-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run_on_thread(self) -> None:
        try:
            self.run(ready=lambda _url: self._started.set())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self, ready: Callable[[str], None], signals: bool) -> None:
        loop = asyncio.get_running_loop()
        self._loop, self._stopping = loop, asyncio.Event()
        routes = Routes(self.app, post=loop.call_soon_threadsafe, max_body_bytes=self._limits.body_bytes)
        door = Door(routes.handle, limits=self._limits, loop=loop)
        listener = await self._listen(loop, door)
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled, door)
        shortest = min(self._limits.head_s, self._limits.body_s, self._limits.idle_s, self._limits.linger_s)
        sweeper = loop.create_task(_every(min(1.0, shortest / 2), door.sweep))
        if signals:
            gc.collect()
            gc.freeze()  # what start-up made stays: the collector need not look at it while requests wait
        try:
            ready(self._url)
            await self._stopping.wait()
        finally:
            listener.close()
            await _drained(door)
            sweeper.cancel()
            routes.close()

    async def _listen(self, loop: asyncio.AbstractEventLoop, door: Door) -> asyncio.Server:
        where = f"port {self._port} of {self._host}"
        try:
            listener = await loop.create_server(door, self._host, self._port, backlog=1024)
        except (socket.gaierror, UnicodeError) as error:
            raise UsageError(f"Host '{self._host}' is not an address ({error}). Try --host 127.0.0.1.") from error
        except OSError as error:
            fixes = {
                errno.EADDRINUSE: "is in use. Choose another with --port, or any free one with --port 0",
                errno.EACCES: "is not allowed to this user. Choose one above 1023 with --port",
                errno.EADDRNOTAVAIL: "cannot be listened on: the address is not this machine's. Try --host 127.0.0.1",
            }
            why = fixes.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
            raise EdgekitError(f"{where[0].upper()}{where[1:]} {why}.") from error
        host, port = listener.sockets[0].getsockname()[:2]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return listener

    def _signalled(self, door: Door) -> None:
        if self._stopping is not None and not self._stopping.is_set():
            self._stopping.set()
        else:
            door.abort()


async def _every(seconds: float, call: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        call()


async def _drained(door: Door, *, wait_s: float = DRAIN_S) -> None:
    """Let the door's connections finish, for at most `wait_s` seconds."""
    door.drain()
    end = door.loop.time() + wait_s
    while door.connections and door.loop.time() < end:
        await asyncio.sleep(0.01)
    door.abort()
