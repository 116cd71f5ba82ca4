"""Batch inference on a Ray cluster: Ray Data hands stretches of inputs to actors that each hold the open package.

An actor takes a whole node's CPUs, or one GPU. A worker that dies is started again and its stretches are done again;
parts are known by their inputs, so none is there twice. Inputs lie on storage that every node sees under the same path;
the package is fetched from the driver by nodes that do not see it.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgekit.batch.columns import Layout
from edgekit.batch.formats import Format, format_for
from edgekit.batch.job import PartData, Stretch, parts_of
from edgekit.batch.pipeline import Pipeline, batch_size
from edgekit.batch.plan import text_of
from edgekit.cluster import first_line, package_here, packed
from edgekit.errors import BackendError, EdgekitError, UsageError
from edgekit.package import Package
from edgekit.runtime.select import open_session

MOST_FILES, LEAST_FILES = 256, 16
"""Inputs in one stretch: what a worker that dies has to do again, and small enough to spread over all workers."""

STRETCHES_A_WORKER = 8

TRIES = 4
"""A stretch that ended its worker so often is not tried again; Ray itself would go on for ever."""

AT_ONCE = 2
"""Stretches that a worker does at once: one begins to read while the other ends."""


@dataclass(frozen=True)
class Options:
    """What `edgekit batch` was told, as far as workers need it."""

    output: str
    top: int
    tensors: bool
    variant: str | None
    batch: int | None
    threads: int | None
    readers: int | None
    run: str = ""
    """What tells this run from others on the same nodes."""


@dataclass(frozen=True)
class Share:
    """What one worker takes of its node, and how many workers there are."""

    workers: int
    cpus: int
    gpus: int


def share_of(nodes: Sequence[dict[str, float]], workers: int | None) -> Share:
    """How to spread `workers` over nodes with these resources ("CPU", "GPU").

    By default a GPU has one each; without GPUs a node has one that takes its CPUs (those of the smallest node).

    Raises:
        UsageError: the cluster has no CPUs.
    """
    gpus = sum(int(n.get("GPU", 0)) for n in nodes)
    cpus = [int(n.get("CPU", 0)) for n in nodes if n.get("CPU", 0) >= 1]
    if not cpus:
        raise UsageError("The Ray cluster has no node with a CPU for workers. Add one: ray start --address HEAD:6379")
    if gpus:
        return Share(workers or gpus, 1, 1)
    if workers is None:
        return Share(len(cpus), min(cpus), 0)
    return Share(workers, max(1, min(sum(cpus) // workers, *cpus)), 0)


class ClusterEngine:
    """Runs files on the cluster that `ray` is connected to. `workers` None: see `share_of`."""

    def __init__(self, ray: Any, package: Package, options: Options, *, workers: int | None = None) -> None:
        self._ray, self._package = ray, package
        self._options = replace(options, run=uuid.uuid4().hex)
        nodes = [n for n in ray.nodes() if n["Alive"]]
        self.share = share_of([n["Resources"] for n in nodes], workers)
        self.nodes = len(nodes)
        self.variant = options.variant or "each node's best"

    def run(
        self, folder: Path, stretches: Sequence[Stretch], table: Format, tick: Callable[[int], None]
    ) -> Generator[PartData, None, None]:
        """See `Engine.run`.

        Raises:
            BackendError: a node cannot do the work, or Ray gave up.
        """
        ray = self._ray
        pieces = list(cut(stretches, self.share.workers))
        if not pieces:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        archive = [ray.put(packed(self._package))] if self.nodes > 1 else []
        items = [{"stretch": msgspec.msgpack.encode([s.start, s.stop, _names(s)])} for s in pieces]
        results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self.share.workers,
                max_tasks_in_flight_per_actor=2 * AT_ONCE,
                max_concurrent_calls_per_actor=AT_ONCE,
                enable_true_multi_threading=True,
            ),
            fn_constructor_args=(
                str(self._package.path),
                self._package.manifest.digest,
                archive,
                str(folder.resolve()),
                self._options,
                self.share.cpus if not self.share.gpus else None,
            ),
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus or None,
        )
        try:
            for found in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in found.to_pylist():
                    if row["fault"]:
                        raise BackendError(row["fault"])
                    tick(row["files"])
                    yield PartData(*(row[name] for name in ("start", "stop", "files", "rows", "failed", "data")))
        except ray.exceptions.RayError as error:
            raise BackendError(
                f"Ray gave up: {first_line(error)} What was done before is kept; see to the cluster, and run the same "
                "command again."
            ) from error


class Tries:
    """How often a stretch was begun on this node and not ended, in files that outlive a worker."""

    def __init__(self, run: str) -> None:
        self._stem = Path(tempfile.gettempdir()) / f"edgekit-batch-{run}"

    def begin(self, start: int) -> int:
        """The number of this try, from 1."""
        path = self._path(start)
        count = 1 + (path.stat().st_size if path.exists() else 0)
        with path.open("ab") as file:
            file.write(b".")
        return count

    def end(self, start: int) -> None:
        """The stretch is done."""
        self._path(start).unlink(missing_ok=True)

    def _path(self, start: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{start}")


class Worker:
    """An actor: the open package, and the pipeline that files go through. What fails is told, not raised: Ray would try
    again what cannot succeed."""

    def __init__(
        self,
        path: str,
        digest: str,
        archive: Sequence[Any],
        folder: str,
        options: Options,
        threads: int | None,
    ) -> None:
        self._folder, self._fault = Path(folder), ""
        self._tries = Tries(options.run)
        try:
            if not self._folder.is_dir():
                raise UsageError(f"'{folder}' is not there. Put the inputs on storage that every node sees there.")
            package = package_here(Path(path), digest, archive)
            layout = Layout(package, top=options.top, tensors=options.tensors)
            self._table = format_for(Path(options.output), layout.columns)
            session = open_session(package, variant=options.variant, threads=options.threads or threads)
            batch = batch_size(package, session, wanted=options.batch)
            readers = options.readers or threads
            self._pipeline = Pipeline(package, session, layout, batch=batch, readers=readers)
        except EdgekitError as error:
            self._fault = f"On node {os.uname().nodename}: {error}"

    def __call__(self, batch: Any) -> Any:
        """A table of parts for a table of stretches."""
        import pyarrow

        rows: list[dict[str, Any]] = []
        for text in batch["stretch"].to_pylist():
            start, stop, names = msgspec.msgpack.decode(text)
            stretch = Stretch(start, stop, [(place, os.fsdecode(name)) for place, name in names])
            rows += self._parts(stretch)
        columns = [("start", "int64"), ("stop", "int64"), ("files", "int64"), ("rows", "int64"), ("failed", "int64")]
        columns += [("data", "large_binary"), ("fault", "string")]
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in columns])
        return pyarrow.Table.from_pylist(rows, schema)

    def _parts(self, stretch: Stretch) -> list[dict[str, Any]]:
        if self._fault:
            return [{"fault": self._fault}]
        try:
            if self._tries.begin(stretch.start) > TRIES:
                raise BackendError(
                    f"{len(stretch.names)} files from '{text_of(stretch.names[0][1])}' on were under way each of "
                    f"{TRIES} times that their worker died. Find the one at fault with edgekit run, or give workers "
                    "more memory; the rest is kept."
                )
            parts = parts_of(self._pipeline, self._folder, stretch, self._table, keep_s=float("inf"))
            found = [{**asdict(p), "fault": ""} for p in parts]
        except EdgekitError as error:
            self._fault = f"On node {os.uname().nodename}: {error}"
            found = [{"fault": self._fault}]
        self._tries.end(stretch.start)
        return found


def cut(stretches: Sequence[Stretch], workers: int) -> Iterator[Stretch]:
    """`stretches` in pieces for `workers`."""
    total = sum(len(s.names) for s in stretches)
    size = min(MOST_FILES, max(LEAST_FILES, total // (workers * STRETCHES_A_WORKER)))
    for stretch in stretches:
        start = stretch.start
        for at in range(0, max(1, len(stretch.names)), size):
            names = stretch.names[at : at + size]
            last = at + size >= len(stretch.names)
            stop = stretch.stop if last else names[-1][0] + 1
            yield Stretch(start, stop, names)
            start = stop


def _names(stretch: Stretch) -> list[tuple[int, bytes]]:
    return [(place, os.fsencode(name)) for place, name in stretch.names]
