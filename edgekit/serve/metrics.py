"""Counters of every model in the text form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.serve.stats import BOUNDS_S, Histogram

if TYPE_CHECKING:
    from edgekit.serve.app import App
    from edgekit.serve.energy import Spent
    from edgekit.serve.model import Model

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_COUNTERS: tuple[tuple[str, str, Callable[[Model], float]], ...] = (
    ("edgekit_requests_total", "Requests that were answered.", lambda m: m.stats.success.count),
    ("edgekit_rows_total", "Rows of answered requests.", lambda m: m.stats.samples),
    ("edgekit_runs_total", "Runs of the model; one may answer several requests.", lambda m: m.stats.runs),
    ("edgekit_cancelled_total", "Requests whose client left before they ran.", lambda m: m.stats.cancelled),
    ("edgekit_cache_hits_total", "Requests answered from the cache.", lambda m: m.stats.hit.count),
    ("edgekit_cache_misses_total", "Requests that the cache had no answer for.", lambda m: m.stats.miss.count),
    ("edgekit_join_seconds_total", "Time spent on joining requests.", lambda m: m.stats.join.ns / 1e9),
)
_GAUGES: tuple[tuple[str, str, Callable[[Model], float]], ...] = (
    ("edgekit_queue_length", "Requests that wait.", lambda m: m.worker.waiting()),
    ("edgekit_sequences_open", "Sequences whose state is kept.", lambda m: len(m.sequences)),
    ("edgekit_sequences_bytes", "Memory of the states of sequences.", lambda m: m.sequences.bytes),
    ("edgekit_cache_bytes", "Memory of the cache.", lambda m: m.cache.bytes if m.cache is not None else 0),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Model], Histogram]], ...] = (
    ("edgekit_request_duration_seconds", "From a request's arrival to its answer.", lambda m: m.stats.request_times),
    ("edgekit_queue_duration_seconds", "Time that a request waited.", lambda m: m.stats.queue_times),
    ("edgekit_run_duration_seconds", "Time that a run of the model took.", lambda m: m.stats.run_times),
)


def exposition(app: App) -> bytes:
    """The metrics of all models, of the process, and of the machine once it has been read."""
    return ("\n".join(_lines(app)) + "\n").encode()


def _lines(app: App) -> Iterator[str]:
    models = [(m, f'model="{_escaped(m.name)}",version="{_escaped(m.version)}"') for m in app.repository.models()]
    for kind, table in (("counter", _COUNTERS), ("gauge", _GAUGES)):
        for name, text, value in table:
            yield from _head(name, text, kind)
            for model, labels in models:
                yield f"{name}{{{labels}}} {value(model):g}"
    yield from _head("edgekit_failures_total", "Requests that were answered with an error, by its status.", "counter")
    for model, labels in models:
        for status, count in sorted(model.stats.failures.items()):
            yield f'edgekit_failures_total{{{labels},status="{status}"}} {count}'
    for name, text, histogram in _HISTOGRAMS:
        yield from _head(name, text, "histogram")
        for model, labels in models:
            found = histogram(model)
            yield from _histogram(name, labels, BOUNDS_S, found.counts, found.ns / 1e9)
    yield from _head("edgekit_batch_rows", "Rows of a run.", "histogram")
    for model, labels in models:
        yield from _batches(labels, model)
    if app.energy is not None:
        yield from _energy(app.energy.spent)
    yield from _head("edgekit_ready", "Whether the server takes requests.", "gauge")
    yield f"edgekit_ready {int(app.ready)}"
    if app.cooling is not None:
        yield from _head("edgekit_thermal_step", "How far the server steps back from heat, 0 to 3.", "gauge")
        yield f"edgekit_thermal_step {app.cooling.admission.level}"
        yield from _head("edgekit_thermal_shed_total", "Requests refused because of heat.", "counter")
        yield f"edgekit_thermal_shed_total {app.cooling.shed}"
    yield from app.machine.lines()
    resident = resident_bytes()
    if resident is not None:
        yield from _head("process_resident_memory_bytes", "Memory of the process.", "gauge")
        yield f"process_resident_memory_bytes {resident}"


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _histogram(name: str, labels: str, bounds: Sequence[float], counts: Sequence[int], added: float) -> Iterator[str]:
    total = 0
    for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts):
        total += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
    yield f"{name}_sum{{{labels}}} {added:.9g}"
    yield f"{name}_count{{{labels}}} {total}"


def _batches(labels: str, model: Model) -> Iterator[str]:
    bounds = (1, 2, 4, 8, 16, 32, 64, 128)
    for bound in bounds:
        within = sum(b.runs for rows, b in model.stats.batches.items() if rows <= bound)
        yield f'edgekit_batch_rows_bucket{{{labels},le="{bound}"}} {within}'
    runs = sum(b.runs for b in model.stats.batches.values())
    yield f'edgekit_batch_rows_bucket{{{labels},le="+Inf"}} {runs}'
    yield f"edgekit_batch_rows_sum{{{labels}}} {sum(r * b.runs for r, b in model.stats.batches.items())}"
    yield f"edgekit_batch_rows_count{{{labels}}} {runs}"


def _energy(spent: Mapping[tuple[str, str, str], Spent]) -> Iterator[str]:
    from edgekit.serve.energy import BOUNDS_J

    name = "edgekit_request_energy_joules"
    yield from _head(name, "Energy above idle of a request, by its share of its run.", "histogram")
    for (model, version, source), one in tuple(spent.items()):
        labels = f'model="{_escaped(model)}",version="{_escaped(version)}",source="{source}"'
        yield from _histogram(name, labels, BOUNDS_J, one.counts, one.energy_j)


def resident_bytes() -> int | None:
    """Resident memory of this process, or None where the kernel does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
