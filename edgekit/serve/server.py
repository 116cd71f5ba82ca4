"""A server: models behind their doors, from start to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit._lazy import available, require
from edgekit.errors import EdgekitError
from edgekit.serve.app import App
from edgekit.serve.entrance import Entrance, Listening
from edgekit.serve.http import Door
from edgekit.serve.http_messages import Handler
from edgekit.serve.library import Library
from edgekit.serve.limits import Limits
from edgekit.serve.listen import UDS_MODE, Sockets, all_local, bind, is_local
from edgekit.serve.model import Model
from edgekit.serve.page import same_site
from edgekit.serve.repository import Repository
from edgekit.serve.routes import Routes
from edgekit.serve.shared_memory import SharedMemory

if TYPE_CHECKING:
    from edgekit.serve.auth import Tokens
    from edgekit.serve.h2.limits import Limits as GrpcLimits
    from edgekit.serve.peers import Peers
    from edgekit.serve.systemd import Notifier
    from edgekit.serve.tls import TlsFiles

LOGGER = logging.getLogger(__name__)

AFTER_START_S = 0.5
"""The machine's sensors are looked for so long after the server is there."""

SWITCH_S = 0.5e-3
"""How long a model's thread that has finished a run waits for the thread that parses requests to make way, at most:
Python's own 5 ms are longer than many runs, and under overload that thread never rests."""

DRAIN_S = 10.0
"""How long a server that was told to stop waits for requests in flight."""


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
        port: int | None = 8000,
        limits: Limits | None = None,
        grpc_port: int | None = None,
        grpc_limits: GrpcLimits | None = None,
        uds: Path | None = None,
        uds_mode: int = UDS_MODE,
        sockets: Sockets | None = None,
        library: Library | None = None,
        watch_s: float | None = None,
        control: bool | None = None,
        tls: TlsFiles | None = None,
        tokens: Tokens | None = None,
        notifier: Notifier | None = None,
        peers: Peers | None = None,
    ) -> None:
        """Port 0 takes a free one: see `url` and `grpc_address` once it runs; None leaves that door out.

        `uds` is a Unix socket that takes HTTP and gRPC, without TLS. `sockets`, already bound, take the place of host,
        ports and path. Clients may share memory with the server where it listens for this machine only. `library` is
        where `models` came from: it is looked at every `watch_s` seconds (None: never) for packages that changed, and
        clients may load and unload its models with `control`; None leaves that to those with a token for it, and
        without tokens to servers that only this machine reaches. `peers` are the other workers of this server.

        Raises:
            UsageError: two models have one name.
        """
        local = is_local(host) if sockets is None else all_local([*sockets.http, *sockets.grpc])
        if control is None:
            control = local if tokens is None else tokens.any_control
        self.app = App(Repository(models), memory=SharedMemory(allowed=local), library=library, control=control)
        self._watch_s = watch_s
        self._bind = partial(bind, host, port, grpc_port, uds=uds, uds_mode=uds_mode)
        self._sockets = sockets
        self._limits, self._grpc_limits = limits or Limits(), grpc_limits
        self._tls, self._tokens, self._notifier, self._peers = tls, tokens, notifier, peers
        self._url = self._grpc_address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._doors: list[Listening] = []
        self._entrance: Entrance | None = None
        self._reloading: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the server answers, such as http://127.0.0.1:8000; empty before it runs, and without HTTP."""
        return self._url

    @property
    def grpc_address(self) -> str:
        """Where gRPC is answered, such as 127.0.0.1:8001; empty before it runs, and without gRPC."""
        return self._grpc_address

    def run(self, *, ready: Callable[[str], None] = lambda _url: None, signals: bool = False) -> None:
        """Serve until `stop`, then answer what is in flight and return.

        `ready` is called with the URL once requests are accepted. With `signals` (main thread only) the process is
        the server's: SIGINT and SIGTERM stop it, and a second one ends it without waiting; SIGHUP is `reload`.

        Raises:
            EdgekitError: the port is taken or not allowed.
            UsageError: the host is not an address of this machine, or a certificate cannot be used.
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

    def reload(self) -> None:
        """Read certificates and tokens again, for connections from now on. Safe from any thread.

        Calls of gRPC that are open are finished; then their connections are asked to come again. Files that cannot be
        used change nothing, and the log says why.
        """
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._begin_reload, loop)

    def _begin_reload(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reloading = loop.create_task(self._reload(loop))

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
        routes = Routes(
            self.app,
            post=loop.call_soon_threadsafe,
            max_body_bytes=self._limits.body_bytes,
            shortcuts=self._tokens is None,  # which are asked for at every request
        )
        sockets = self._sockets or self._bind()
        http = Door(self._handler(routes), limits=self._limits, loop=loop)
        self._doors = [http]
        with contextlib.ExitStack() as closing:
            closing.callback(routes.close)
            closing.callback(sockets.close)
            self._entrance = Entrance(sockets, http=http, grpc=self._grpc_door(loop, sockets), tls=self._tls)
            closing.callback(self._entrance.close)
            if self._peers is not None:
                inner = await self._join(loop, routes, self._peers)
                closing.callback(inner.close)
            await self._entrance.open(loop)
            if sockets.http:
                self._url = f"{'http' if self._tls is None else 'https'}://{sockets.address}"
            self._grpc_address = sockets.grpc_address
            if signals:
                self._take_signals(loop)
            sweeper = loop.create_task(self._sweep())
            closing.callback(sweeper.cancel)
            if self.app.library is not None:
                self.app.library.start(self.app, loop.call_soon_threadsafe, watch_s=self._watch_s)
            try:
                ready(self._url)
                if self.app.machine.guards:
                    loop.call_later(AFTER_START_S, partial(self.app.machine.begin, if_it_throttles=True))
                if self.app.cooling is not None:
                    self.app.machine.begin()
                if self.app.energy is not None:
                    self.app.energy.start()
                self._tell_ready()
                await self._stopping.wait()
            finally:
                self.app.open = False
                if self._notifier is not None:
                    self._notifier.stopping()
                self._entrance.close()
                await _drained(self._doors, loop)
                for door in self._doors:
                    door.close()

    def _handler(self, routes: Routes) -> Handler:
        handle: Handler = routes.handle
        if self._peers is not None:
            from edgekit.serve.peers import shared

            handle = shared(handle, self._peers)
        return same_site(handle if self._tokens is None else self._tokens.guard(handle))

    def _grpc_door(self, loop: asyncio.AbstractEventLoop, sockets: Sockets) -> Listening | None:
        """The door for gRPC, where there is a socket for it, or a Unix socket and the libraries for both."""
        if not sockets.grpc and not (sockets.unix and available("hpack") and available("google.protobuf")):
            return None
        from edgekit.serve.grpc.door import GrpcDoor  # only where it is asked for
        from edgekit.serve.h2.limits import Limits as GrpcLimits

        door = GrpcDoor(
            self.app,
            limits=self._grpc_limits or GrpcLimits(),
            loop=loop,
            post=loop.call_soon_threadsafe,
            check=None if self._tokens is None else self._tokens.check_call,
            peers=self._peers,
        )
        self._doors.append(door)
        return door

    async def _join(self, loop: asyncio.AbstractEventLoop, routes: Routes, peers: Peers) -> asyncio.AbstractServer:
        """Answer the other workers, and take over what they were told before this one was there."""
        from edgekit.serve.peers import within

        def calls() -> Any:
            from edgekit.serve.grpc.service import Service

            return Service(self.app).methods()

        door = Door(within(routes.handle, calls), limits=self._limits, loop=loop)
        self._doors.append(door)
        peers.path.unlink(missing_ok=True)
        listener = await loop.create_unix_server(door, str(peers.path))
        if peers.starts > 1:
            await peers.catch_up(routes.handle)
        return listener

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what start-up made stays: the collector need not look at it while requests wait

    def _signalled(self) -> None:
        if self._stopping is not None and not self._stopping.is_set():
            self._stopping.set()
        else:
            for door in self._doors:
                door.abort()

    async def _reload(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._notifier is not None:
            self._notifier.reloading()
        try:
            if self._tls is not None and self._entrance is not None:
                await self._entrance.open(loop)
                LOGGER.info("certificates are read again")
        except EdgekitError as error:
            LOGGER.error("certificates stay as they were: %s", error)
        try:
            if self._tokens is not None:
                self._tokens.reload()
                LOGGER.info("tokens are read again")
                for door in self._doors[1:]:  # gRPC asks once for the token of calls that look the same
                    for connection in list(door.connections):
                        connection.drain()
        except EdgekitError as error:
            LOGGER.error("tokens stay as they were: %s", error)
        try:
            if self.app.library is not None:
                self.app.library.reload_keys()
        except EdgekitError as error:
            LOGGER.error("keys of signatures stay as they were: %s", error)
        self._tell_ready()

    def _tell_ready(self) -> None:
        if self._notifier is not None:
            self._notifier.ready(f"serving on {self._url or self._grpc_address}")

    async def _sweep(self) -> None:
        limits, notifier = self._limits, self._notifier
        pause_s = min(1.0, min(limits.head_s, limits.body_s, limits.idle_s, limits.linger_s) / 2)
        if notifier is not None and notifier.watchdog_s is not None:
            pause_s = min(pause_s, notifier.watchdog_s)
        while True:
            await asyncio.sleep(pause_s)
            for call in (*(door.sweep for door in self._doors), self.app.sweep, self._look_at_machine):
                call()
            if notifier is not None and notifier.watchdog_s is not None:
                notifier.alive()

    def _look_at_machine(self) -> None:
        self.app.machine.update(time.monotonic())
        if self.app.cooling is not None:
            self.app.cooling.update()
        if self.app.energy is not None:
            self.app.energy.observe()


async def _drained(doors: Sequence[Listening], loop: asyncio.AbstractEventLoop, *, wait_s: float = DRAIN_S) -> None:
    """Let the doors' connections finish, for at most `wait_s` seconds."""
    for door in doors:
        door.drain()
    end = loop.time() + wait_s
    while any(door.connections for door in doors) and loop.time() < end:
        await asyncio.sleep(0.01)
    for door in doors:
        door.abort()
