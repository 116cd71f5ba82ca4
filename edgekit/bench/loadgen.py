"""MLPerf's load generator (mlcommons-loadgen) as a driver: its scenarios, its own logs, its own verdict.

Rules and names: https://github.com/mlcommons/inference/tree/master/loadgen
"""

from __future__ import annotations

import platform
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgekit._lazy import require
from edgekit.bench.inputs import Inputs
from edgekit.errors import BackendError, CheckError, MissingDependencyError
from edgekit.runtime.session import Session
from edgekit.tensors import Feed, batch_axis

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]
SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")
PER_QUERY = 8
"""Samples of a multi-stream query, by MLPerf's rules."""
MOST_SAMPLES = 1024
"""Samples kept in memory; LoadGen draws from them."""
PROBE_S = 0.5
_LATENCY = re.compile(r"[\d.]+(th)? percentile latency \(ns\)")
_METRICS = {
    "single-stream": _LATENCY,
    "multi-stream": _LATENCY,
    "server": re.compile(r"(Completed|Scheduled) samples per second"),
    "offline": re.compile(r"Samples per second"),
}
"""The line of the summary that holds a scenario's own figure; names differ between releases of LoadGen."""
_LINE = re.compile(r"^(.+?)\s*:\s*(.+?)\s*$")


class LoadGenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What LoadGen says of one run: `valid` is its verdict, `problems` its reasons, `figures` its summary's lines.

    `metric` names the scenario's own figure, `value` is it: a latency in seconds (90th percentile of single-stream,
    99th of multi-stream) or samples a second. `logs` are the names of LoadGen's files.
    """

    scenario: Scenario
    valid: bool
    metric: str
    value: float
    figures: dict[str, str]
    problems: tuple[str, ...]
    logs: tuple[str, ...]
    loadgen: str


def run_loadgen(
    session: Session,
    inputs: Inputs,
    *,
    scenario: Scenario,
    folder: Path,
    min_duration_s: float | None = None,
    target_qps: float | None = None,
    target_latency_s: float | None = None,
    max_batch: int = 32,
    streams: int = 1,
) -> LoadGenResult:
    """Drive `session` by LoadGen in performance mode; its logs go to `folder`, which must exist.

    None leaves LoadGen's own setting: ten minutes, and in "server" one query a second within 100 ms. Rows that wait run
    together up to `max_batch`, by `streams` callers. What LoadGen has to expect of the model is measured beforehand.

    Raises:
        MissingDependencyError: mlcommons-loadgen is not installed.
        BackendError: the model failed; CheckError: LoadGen wrote no summary.
    """
    loadgen = _loadgen()
    samples = inputs.feeds(1, most=MOST_SAMPLES)
    driver = _Driver(loadgen, session, samples, max_batch if inputs.dynamic else 1, streams)
    settings = _settings(loadgen, scenario, min_duration_s, target_qps, target_latency_s)
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, False
    system = loadgen.ConstructSUT(driver.issue, driver.flush)
    library = loadgen.ConstructQSL(len(samples), len(samples), _nothing, _nothing)
    driver.start()
    _expect(settings, driver, scenario)
    # In a thread of its own, since this one would not hear Ctrl-C for ten minutes.
    test = threading.Thread(
        target=loadgen.StartTestWithLogSettings, args=(system, library, settings, logs), daemon=True
    )
    test.start()
    while test.is_alive():
        test.join(0.2)
    driver.stop()
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    if driver.failed is not None:
        raise BackendError(f"The model failed under LoadGen: {driver.failed}") from driver.failed
    return _result(scenario, folder)


def _loadgen() -> Any:
    try:
        return require("mlperf_loadgen", why="run MLPerf scenarios")
    except MissingDependencyError as error:
        if (machine := platform.machine()) in ("x86_64", "AMD64"):
            raise
        raise MissingDependencyError(
            f"{error}. There is no wheel of it for {machine}: pip compiles it, which needs a C++ compiler and Python's "
            "headers (Debian, Ubuntu, JetPack: sudo apt install g++ python3-dev)."
        ) from error


class _Driver:
    """Answers LoadGen's queries: rows that wait are joined up to `max_batch` and run by `streams` threads.

    LoadGen must be answered even when the model fails, or it waits for ever: answers are empty then, `failed` is set.
    """

    def __init__(self, loadgen: Any, session: Session, samples: Sequence[Feed], max_batch: int, streams: int) -> None:
        self._loadgen, self._session, self._samples = loadgen, session, samples
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(streams)]
        self._axes = {s.name: batch_axis(s, session.inputs) for s in session.inputs}
        self._complete: Callable[[Sequence[int]], None] = self._tell
        self.failed: Exception | None = None

    def rate(self) -> float:
        """Samples a second of a large query, with everything that answering one here costs: the best of three."""
        answered: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._complete = lambda ids: answered.put(len(self._responses(ids)))
        count, best, found = 8 * self._max_batch * len(self._threads), 0.0, 0
        while found < 3:  # other work on the machine only ever slows one down
            start = time.perf_counter()
            self.issue([self._loadgen.QuerySample(i, i % len(self._samples)) for i in range(count)])
            left = count
            while left > 0:
                left -= answered.get()
            seconds = time.perf_counter() - start
            if seconds < PROBE_S:
                count *= 2
            else:
                best, found = max(best, count / seconds), found + 1
        self._complete = self._tell
        return best

    def fastest_s(self, rows: int) -> float:
        """The shortest of some calls of `rows` rows, or of as many calls as they take."""
        size = min(rows, self._max_batch)
        times: list[float] = []
        deadline = time.perf_counter() + PROBE_S
        while len(times) < 3 or (time.perf_counter() < deadline and len(times) < 1000):
            start = time.perf_counter()
            for first in range(0, rows, size):
                self._session.run(self._joined([i % len(self._samples) for i in range(first, min(first + size, rows))]))
            times.append(time.perf_counter() - start)
        return min(times)

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End once everything that waits is answered."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def issue(self, query: Sequence[Any]) -> None:
        """LoadGen's callback: a query of one or more samples, in the order of their inputs."""
        for sample in query:
            self._waiting.put((sample.id, sample.index))

    def flush(self) -> None:
        """LoadGen's callback after its last query; nothing is held back here."""

    def _loop(self) -> None:
        ended = False
        while not ended:
            first = self._waiting.get()
            if first is None:
                return
            rows = [first]
            while len(rows) < self._max_batch:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                rows.append(more)
            self._answer(rows)

    def _answer(self, rows: Sequence[tuple[int, int]]) -> None:
        if self.failed is None:
            try:
                self._session.run(self._joined([index for _, index in rows]))
            except Exception as error:  # told to the caller once LoadGen has ended
                self.failed = error
        self._complete([i for i, _ in rows])

    def _tell(self, ids: Sequence[int]) -> None:
        self._loadgen.QuerySamplesComplete(self._responses(ids))

    def _responses(self, ids: Sequence[int]) -> list[Any]:
        return [self._loadgen.QuerySampleResponse(i, 0, 0) for i in ids]

    def _joined(self, indices: Sequence[int]) -> Feed:
        import numpy as np

        if len(indices) == 1:
            return self._samples[indices[0]]
        parts = [self._samples[i] for i in indices]
        return {
            name: parts[0][name] if axis is None else np.concatenate([p[name] for p in parts], axis=axis)
            for name, axis in self._axes.items()
        }


def _settings(
    loadgen: Any,
    scenario: Scenario,
    min_duration_s: float | None,
    target_qps: float | None,
    target_latency_s: float | None,
) -> Any:
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    names = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "server": "Server", "offline": "Offline"}
    settings.scenario = getattr(loadgen.TestScenario, names[scenario])
    settings.multi_stream_samples_per_query = PER_QUERY
    if min_duration_s is not None:
        settings.min_duration_ms = max(1, round(1000 * min_duration_s))
    if target_qps is not None:
        settings.server_target_qps = settings.offline_expected_qps = target_qps
    if target_latency_s is not None:
        settings.server_target_latency_ns = round(1e9 * target_latency_s)
    return settings


def _expect(settings: Any, driver: _Driver, scenario: Scenario) -> None:
    """What LoadGen uses to make enough queries beforehand: it calls a run that used them up too early invalid."""
    if scenario == "single-stream":
        settings.single_stream_expected_latency_ns = max(1, round(1e9 * driver.fastest_s(1) / 2))
    elif scenario == "multi-stream":
        settings.multi_stream_expected_latency_ns = max(1, round(1e9 * driver.fastest_s(PER_QUERY) / 2))
    elif scenario == "offline":
        settings.offline_expected_qps = 1.5 * driver.rate()


def _result(scenario: Scenario, folder: Path) -> LoadGenResult:
    try:
        text = (folder / "mlperf_log_summary.txt").read_text()
    except OSError as error:
        raise CheckError(
            f"LoadGen wrote no summary to '{folder}' ({error.strerror}), so there is no result."
        ) from error
    figures, problems = parse_summary(text)
    metric = next((n for n in figures if _METRICS[scenario].fullmatch(n)), None)
    verdict = figures.get("Result is")
    if metric is None or verdict not in ("VALID", "INVALID"):
        raise CheckError(f"The summary of LoadGen in '{folder}' has no result. See mlperf_log_detail.txt there.")
    return LoadGenResult(
        scenario=scenario,
        valid=verdict == "VALID",
        metric=metric.removesuffix(" (ns)"),
        value=float(figures[metric]) * (1e-9 if metric.endswith("(ns)") else 1.0),
        figures=figures,
        problems=() if verdict == "VALID" else problems,
        logs=(),
        loadgen=_version(),
    )


def parse_summary(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The lines `name : value` of mlperf_log_summary.txt, and what it says is not satisfied or recommended."""
    figures: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            figures.setdefault(match[1].strip(), match[2])
    unmet = [name.removesuffix(" satisfied") for name, value in figures.items() if value == "NO"]
    advice = [line.strip(" *") for line in text.splitlines() if line.startswith(" * ")]
    return figures, (*(f"{name} is not satisfied." for name in unmet), *advice)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mlcommons-loadgen")
    except PackageNotFoundError:
        return "unknown"


def _nothing(_indices: Sequence[int]) -> None:
    """LoadGen asks to load and unload samples; they are in memory all the time."""
