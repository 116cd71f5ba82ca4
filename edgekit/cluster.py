"""Ray clusters: how edgekit connects to one, and how a package gets to its nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit._lazy import require
from edgekit.deliver.archive import pack
from edgekit.deliver.unpack import unpack
from edgekit.engine.cache import cache_folder
from edgekit.errors import EdgekitError, UsageError
from edgekit.package import Package


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`: "local" starts one in this machine, "auto" finds one that runs here.

    What Ray prints goes to stderr. Raises:
        MissingDependencyError: Ray is not installed.
        UsageError: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is said in a sentence
    with contextlib.redirect_stdout(sys.stderr), _signals_kept() as put_back:  # stdout is for results
        ray = require("ray", why="run on a Ray cluster")
        require("ray.data", why="run on a Ray cluster")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        more = {"include_dashboard": False} if address == "local" else {}
        where = address if address in ("local", "auto") or ":" in address else f"{address}:6379"
        try:
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **more)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"No Ray cluster answers at '{address}' ({first_line(error)}). Start one with: ray start --head, "
                "or run on this machine alone: --ray local"
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

    `archive` is empty where there is one node only, else it holds Ray's reference to what `packed` gave. Raises:
        PackageError, IntegrityError, StorageError: it is neither here nor can it be unpacked.
    """
    if not archive:
        return Package.open(path)
    try:
        package = Package.open(path)
        if package.manifest.digest == digest:
            return package
    except EdgekitError:
        pass  # another node's path; it comes with the work
    target = cache_folder() / "ray" / digest / path.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        ray = require("ray", why="run on a Ray cluster")
        unpack(target, target, stream=io.BytesIO(ray.get(archive[0])), force=True)
    return Package.open(target)


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
