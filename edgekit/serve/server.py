"""A server: models behind a door, from start to the last answer."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgekit._lazy import require
from edgekit.errors import EdgekitError, UsageError
from edgekit.serve.app import App
from edgekit.serve.http import Door
from edgekit.serve.library import Library
from edgekit.serve.limits import Limits
from edgekit.serve.model import Model
from edgekit.serve.repository import Repository
from edgekit.serve.routes import Routes
from edgekit.serve.shared_memory import SharedMemory

if TYPE_CHECKING:
    from edgekit.serve.h2.limits import Limits as GrpcLimits

DRAIN_S = 10.0
"""How long a server that was told to stop waits for requests in flight."""


class Listening(Protocol):
    """What a server asks of a door: see `edgekit.serve.http.Door`."""

    connections: Any
    loop: asyncio.AbstractEventLoop

    def __call__(self) -> asyncio.BaseProtocol:
        """A protocol for one more connection."""
        ...

    def sweep(self) -> None:
        """Let go of clients that take too long."""
        ...

    def drain(self) -> None:
        """Answer what was asked, and close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def close(self) -> None:
        """Let go of threads, once no connection is left."""
        ...


class Server:
    """Serves models over HTTP and gRPC. `run` serves on the calling thread; a `with` block, on a thread of its own:

        with Server([Model(session, name="net")], port=0) as server:
            requests.get(server.url + "/v2/health/ready")

    The server owns the models and closes them when it ends. A server runs once.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        grpc_port: int | None = None,
        grpc_limits: GrpcLimits | None = None,
        library: Library | None = None,
        watch_s: float | None = None,
        control: bool | None = None,
    ) -> None:
        """Port 0 takes a free one: see `url` and `grpc_address` once it runs; without `grpc_port` there is no gRPC.

        Clients may share memory with the server where it listens for this machine only. `library` is where `models`
        came from: it is looked at every `watch_s` seconds (None: never) for packages that changed, and clients may
        load and unload its models with `control`, which None leaves to servers that only this machine reaches.

        Raises:
            UsageError: two models have one name.
        """
        local = is_local(host)
        self.app = App(
            Repository(models),
            memory=SharedMemory(allowed=local),
            library=library,
            control=local if control is None else control,
        )
        self._watch_s = watch_s
        self._host, self._port, self._grpc_port = host, port, grpc_port
        self._limits, self._grpc_limits = limits or Limits(), grpc_limits
        self._url = self._grpc_address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where the server answers, such as http://127.0.0.1:8000; empty before it runs."""
        return self._url

    @property
    def grpc_address(self) -> str:
        """Where gRPC is answered, such as 127.0.0.1:8001; empty before it runs, and without gRPC."""
        return self._grpc_address

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
        self.app.soon, self.app.later = loop.call_soon, loop.call_later
        routes = Routes(self.app, post=loop.call_soon_threadsafe, max_body_bytes=self._limits.body_bytes)
        doors: list[Listening] = [Door(routes.handle, limits=self._limits, loop=loop)]
        listeners = [await self._listen(loop, doors[0], self._port, "--port")]
        address = address_of(listeners[0])
        self._url = f"http://{address}"
        if self._grpc_port is not None:
            try:
                doors.append(self._grpc_door(loop))
                listeners.append(await self._listen(loop, doors[1], self._grpc_port, "--grpc-port"))
            except BaseException:
                listeners[0].close()
                await listeners[0].wait_closed()
                raise
            self._grpc_address = address_of(listeners[1])
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled, doors)
        shortest = min(self._limits.head_s, self._limits.body_s, self._limits.idle_s, self._limits.linger_s)
        sweeper = loop.create_task(_every(min(1.0, shortest / 2), [*(door.sweep for door in doors), self.app.sweep]))
        if signals:
            gc.collect()
            gc.freeze()  # what start-up made stays: the collector need not look at it while requests wait
        if self.app.library is not None:
            self.app.library.start(self.app, loop.call_soon_threadsafe, watch_s=self._watch_s)
        try:
            ready(self._url)
            await self._stopping.wait()
        finally:
            for listener in listeners:
                listener.close()
            await _drained(doors)
            sweeper.cancel()
            routes.close()
            for door in doors:
                door.close()

    def _grpc_door(self, loop: asyncio.AbstractEventLoop) -> Listening:
        from edgekit.serve.grpc.door import GrpcDoor  # only where it is asked for
        from edgekit.serve.h2.limits import Limits as GrpcLimits

        limits = self._grpc_limits or GrpcLimits()
        return GrpcDoor(self.app, limits=limits, loop=loop, post=loop.call_soon_threadsafe)

    async def _listen(self, loop: asyncio.AbstractEventLoop, door: Listening, port: int, option: str) -> asyncio.Server:
        where = f"port {port} of {self._host}"
        try:
            return await loop.create_server(door, self._host, port, backlog=1024)
        except (socket.gaierror, UnicodeError) as error:
            raise UsageError(f"Host '{self._host}' is not an address ({error}). Try --host 127.0.0.1.") from error
        except OSError as error:
            fixes = {
                errno.EADDRINUSE: f"is in use. Choose another with {option}, or any free one with {option} 0",
                errno.EACCES: f"is not allowed to this user. Choose one above 1023 with {option}",
                errno.EADDRNOTAVAIL: "cannot be listened on: the address is not this machine's. Try --host 127.0.0.1",
            }
            why = fixes.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
            raise EdgekitError(f"{where[0].upper()}{where[1:]} {why}.") from error

    def _signalled(self, doors: Sequence[Listening]) -> None:
        if self._stopping is not None and not self._stopping.is_set():
            self._stopping.set()
        else:
            for door in doors:
                door.abort()


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(listener: asyncio.Server) -> str:
    """host:port of a listener."""
    host, port = listener.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _every(seconds: float, calls: Sequence[Callable[[], None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        for call in calls:
            call()


async def _drained(doors: Sequence[Listening], *, wait_s: float = DRAIN_S) -> None:
    """Let the doors' connections finish, for at most `wait_s` seconds."""
    for door in doors:
        door.drain()
    end = doors[0].loop.time() + wait_s
    while any(door.connections for door in doors) and doors[0].loop.time() < end:
        await asyncio.sleep(0.01)
    for door in doors:
        door.abort()
