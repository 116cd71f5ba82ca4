"""Files to rows: read on threads, joined to batches of the right size, run beside the reading, bad ones kept apart."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgekit.batch.columns import Layout, Rows
from edgekit.errors import BackendError, EdgekitError, InputError
from edgekit.inference import feed_from_file, infer_feed
from edgekit.package import Package
from edgekit.runtime.session import Session
from edgekit.serve.joining import Checked, Joiner
from edgekit.serve.warmup import check_joined, size_of
from edgekit.tensors import Tensors, batches, sample_count, take_samples

MOST_ROWS = 256
"""Rows that are joined at most: nobody waits for the first of them, so only memory speaks against more."""

MOST_BYTES = 64 << 20

MEASURE_S, RUNS = 1.0, 7
"""Seconds that finding the size of a batch may take, and runs of each size."""

CALL_S = 3e-4
"""About what a call costs besides the model's own time: joining, threads, rows of the table."""

FAILURES_IN_A_ROW = 20
"""So many files in a row that the runtime fails on are not the files' fault."""


@dataclass(frozen=True)
class Input:
    """One file, and the name that it goes by in the table."""

    name: str
    path: Path


@dataclass(frozen=True)
class _Read:
    """A file that was read: a feed that fits the model, or what is wrong with it."""

    name: str
    checked: Checked | None
    samples: int = 0
    error: str = ""


@dataclass(frozen=True)
class Done:
    """Whole files, in the order they were given, with their rows."""

    files: int
    rows: list[Rows]

    @property
    def failed(self) -> int:
        """Files that gave no result."""
        return sum(bool(r.error) for r in self.rows)


def batch_size(package: Package, session: Session, *, wanted: int | None) -> int:
    """How many rows to run together: measured on the package's samples, or `wanted` if its rows allow it.

    1 without samples (unless `wanted`), with a fixed batch or states, and where rows come out differently in company.
    """
    joiner = Joiner(session.inputs, session.outputs)
    if not joiner.joinable or package.manifest.states:
        return 1
    if package.manifest.samples is None:
        return wanted or 1
    samples = package.samples().inputs
    limit = 5e-3 if "cuda" in session.device.lower() else 1e-3
    if check_joined(session, joiner, samples, min(wanted or 2, 8), limit=limit):
        return 1
    return wanted or _quickest(session, joiner, take_samples(samples, session.inputs, 0, 1, session.inputs))


def _quickest(session: Session, joiner: Joiner, sample: Tensors) -> int:
    """The smallest power of two whose calls take hardly more a row than the best, with what a call costs besides."""
    part = joiner.check(sample)
    per_row_s: dict[int, float] = {}
    began, rows = time.perf_counter(), 1
    while rows <= MOST_ROWS and (rows == 1 or rows * size_of(sample) <= MOST_BYTES):
        feed = joiner.join([part] * rows)
        times: list[float] = []
        try:
            session.run(feed)  # the first of a shape allocates, or chooses kernels
            while len(times) < RUNS and (not times or time.perf_counter() - began < MEASURE_S):
                start = time.perf_counter()
                session.run(feed)
                times.append(time.perf_counter() - start)
        except (BackendError, InputError):  # an engine has a largest batch
            break
        per_row_s[rows] = (min(times) + CALL_S) / rows  # the quickest: other work on the machine only ever adds
        if time.perf_counter() - began >= MEASURE_S or per_row_s[rows] > 1.5 * min(per_row_s.values()):
            break
        rows *= 2
    best = min(per_row_s.values(), default=0.0)
    return next((n for n, cost in per_row_s.items() if cost <= 1.05 * best), 1)


class Pipeline:
    """Runs files through an open session. `readers` threads read and decode while others run the model.

    At most a few batches of files are held in memory, whatever their number.
    """

    def __init__(
        self, package: Package, session: Session, layout: Layout, *, batch: int, readers: int | None = None
    ) -> None:
        self._package, self._session, self._layout = package, session, layout
        self._batch = 1 if layout.alone or not session.inputs[0].batched else batch
        self._readers = readers or min(32, _cores())
        self._lanes = int(getattr(session, "lanes", 1))
        self._joiner = Joiner(session.inputs, session.outputs)
        self._failures = 0

    @property
    def failing(self) -> bool:
        """Whether the runtime failed on the last input: it may be down, so nothing should be made of that yet."""
        return self._failures > 0

    def run(self, files: Iterable[Input]) -> Generator[Done, None, None]:
        """The rows of every file, in order.

        Raises:
            BackendError: the runtime failed on many files in a row.
        """
        with ExitStack() as closing:
            readers = _pool(closing, self._readers, "edgekit-read")
            runners = _pool(closing, self._lanes, "edgekit-run")
            running: deque[Future[Done]] = deque()
            for group in self._groups(self._ahead(files, readers)):
                running.append(runners.submit(self._run_group, group))
                if len(running) > self._lanes + 1:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()

    def _ahead(self, files: Iterable[Input], readers: ThreadPoolExecutor) -> Iterator[_Read]:
        """The files read, in order, with as many read ahead as keep readers and model busy."""
        most = 2 * (self._batch * self._lanes + self._readers)
        reading: deque[Future[_Read]] = deque()
        for file in files:
            reading.append(readers.submit(self._read, file))
            if len(reading) >= most:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()

    def _read(self, file: Input) -> _Read:
        inputs = self._session.inputs
        try:
            feed = feed_from_file(self._package, file.path, inputs)
            count = sample_count(feed, inputs)
            if count < 1:
                raise InputError(f"'{file.path.name}' holds no samples.")
            if self._package.manifest.states or not inputs[0].batched:  # cut into calls that are checked one by one
                return _Read(file.name, Checked(feed, count, None, {}), count)
            checked = self._joiner.check(feed)
            return _Read(file.name, checked, count)
        except Exception as error:  # decoders raise what they like; a bad file must not end the run
            return _Read(file.name, None, error=_sentence(error))

    def _groups(self, reads: Iterable[_Read]) -> Iterator[list[_Read]]:
        """Neighbours that one call takes, up to the batch; all others alone."""
        group: list[_Read] = []
        rows = 0
        for read in reads:
            checked = read.checked
            alike = bool(group) and checked is not None and checked.key is not None and checked.key == _key(group[0])
            if group and not (alike and rows + read.samples <= self._batch):
                yield group
                group, rows = [], 0
            group.append(read)
            rows += read.samples
        if group:
            yield group

    def _run_group(self, group: list[_Read]) -> Done:
        if len(group) == 1:
            return Done(1, self._run_one(group[0]))
        parts = [read.checked for read in group if read.checked is not None]
        rows = sum(read.samples for read in group)
        try:
            values = self._layout.values(self._session.run(self._joiner.join(parts)), rows)
        except (InputError, BackendError):  # one of them spoils the call: find out which
            return Done(len(group), [r for read in group for r in self._run_one(read)])
        self._failures = 0
        names = [read.name for read in group for _ in range(read.samples)]
        index = [i for read in group for i in range(read.samples)]
        return Done(len(group), [Rows(names, index, values)])

    def _run_one(self, read: _Read) -> list[Rows]:
        """The rows of one file, cut into calls that the model takes."""
        if read.checked is None:
            return [Rows([read.name], [0], error=read.error)]
        try:
            rows = self._calls(read.name, read.checked, read.samples)
        except (InputError, BackendError) as error:
            self._count_failure(error)
            return [Rows([read.name], [0], error=_sentence(error))]
        self._failures = 0
        return rows

    def _calls(self, name: str, checked: Checked, samples: int) -> list[Rows]:
        session, layout = self._session, self._layout
        if self._package.manifest.states:
            outputs = infer_feed(self._package, session, checked.feed)
            return [Rows([name] * samples, range(samples), layout.values(outputs, samples))]
        out: list[Rows] = []
        at = 0
        for feed in batches(checked.feed, session.inputs, self._batch):
            rows = sample_count(feed, session.inputs) if session.inputs[0].batched else layout.rows_a_call
            values = layout.values(session.run(feed), rows)
            out.append(Rows([name] * rows, range(at, at + rows), values))
            at += rows
        return out

    def _count_failure(self, error: EdgekitError) -> None:
        if not isinstance(error, BackendError):
            return
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise RuntimeDownError(
                f"The runtime failed on {self._failures} inputs in a row, the last time with: {error} "
                "What was done before is kept; see to the cause, and run the same command again."
            )


class RuntimeDownError(BackendError):
    """The runtime itself does not work any more."""


def _key(read: _Read) -> object:
    return None if read.checked is None else read.checked.key


def _sentence(error: Exception) -> str:
    if isinstance(error, EdgekitError):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _pool(closing: ExitStack, threads: int, name: str) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    closing.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool
