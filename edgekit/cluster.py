"""Ray clusters: how edgekit connects to one, and how a package gets to its nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit._files import storage
from edgekit._lazy import require
from edgekit.deliver.archive import pack
from edgekit.deliver.unpack import unpack
from edgekit.engine.cache import cache_folder
from edgekit.errors import EdgekitError, UsageError
from edgekit.package import Package

CONNECT_S = 5.0


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`: "local" starts one in this machine, "auto" finds one that runs here.

    What Ray prints goes to stderr. Raises:
        MissingDependencyError: Ray is not installed.
        UsageError: no cluster answers there, or it does not let this process in.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is said in a sentence
    where = address if address in ("local", "auto") or ":" in address else f"{address}:6379"
    if where not in ("local", "auto"):
        _check_answers(address, where)  # Ray itself tries for minutes
    with contextlib.redirect_stdout(sys.stderr), _signals_kept() as put_back:  # stdout is for results
        ray = require("ray", why="run on a Ray cluster")
        require("ray.data", why="run on a Ray cluster")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        more = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **more)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if where in ("local", "auto"):
                raise _no_cluster(address, error) from error
            raise UsageError(
                f"Ray could not join the cluster at '{address}' ({first_line(error)}). It takes the cluster's own "
                "release of Ray, and its token where it has one (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)."
            ) from error
        try:
            put_back()
            yield ray
        finally:
            ray.shutdown()


def packed(package: Package) -> bytes:
    """The package as an archive, for nodes that do not see it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{package.path.name}.tar"
        pack(package, target)
        return target.read_bytes()


def package_here(path: Path, digest: str, archive: Sequence[Any]) -> Package:
    """The package as this node sees it, or unpacked here, once a node.

    `archive` is empty where there is one node only, else it holds Ray's reference to what `packed` gave.

    Raises:
        PackageError, IntegrityError, StorageError: it is neither here nor can it be unpacked.
    """
    if not archive:
        return Package.open(path)
    ray = require("ray", why="run on a Ray cluster")
    return kept_or_fetched(path, digest, lambda: bytes(ray.get(archive[0])))


def kept_or_fetched(path: Path, digest: str, fetch: Callable[[], bytes]) -> Package:
    """The package at `path` if its manifest has this digest; else the one that this node keeps, or `fetch` gives it.

    Raises as `package_here` does.
    """
    with contextlib.suppress(EdgekitError):  # it may be another node's path
        package = Package.open(path)
        if package.manifest.digest == digest:
            return package
    target = cache_folder() / "ray" / digest / path.name
    if not target.exists():
        with storage(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        unpack(target, target, stream=io.BufferedReader(io.BytesIO(fetch())), force=True)
    return Package.open(target)


def _check_answers(address: str, where: str) -> None:
    """Raises UsageError: nothing listens at `where`, HOST:PORT or ray://HOST:PORT."""
    host, _, port = where.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"No Ray cluster answers at '{address}' ({first_line(error)}). Start one with: ray start --head, "
        "or run on this machine alone: --ray local"
    )


@contextmanager
def _signals_kept() -> Iterator[Callable[[], None]]:
    """Gives what puts the handlers of signals back: Ray has its own, which end the process."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def put_back() -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)

    try:
        yield put_back
    finally:
        put_back()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
