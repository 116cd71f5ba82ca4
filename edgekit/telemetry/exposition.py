"""A machine's readings in the text form that Prometheus reads, in base units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgekit.telemetry.monitor import Snapshot
from edgekit.telemetry.totals import Totals

_Series = Iterable[tuple[dict[str, str], float | None]]


def lines(now: Snapshot, totals: Totals) -> Iterator[str]:
    """Metrics of one reading and of all until now. What was not measured has no line, rather than a 0."""
    yield from _metric(
        "edgekit_energy_joules_total",
        "counter",
        "Energy since the watch began; rails and scopes may contain one another.",
        (({"rail": name, "source": source}, joules) for (name, source), joules in totals.energy_j.items()),
    )
    yield from _metric(
        "edgekit_power_watts",
        "gauge",
        "Power now; rails and scopes may contain one another.",
        [
            *(({"rail": p.name}, p.power_w) for p in now.powers),
            *(({"rail": r.label}, r.power_w) for r in now.rails),
        ],
    )
    yield from _metric(
        "edgekit_temperature_celsius",
        "gauge",
        "Temperature of a zone.",
        [
            *(({"zone": z.name}, z.temp_c) for z in now.zones),
            *(({"zone": f"gpu {g.uuid}"}, g.temp_c) for g in now.gpus),
            *(({"zone": f"gpu {g.uuid} memory"}, g.memory_temp_c) for g in now.gpus),
        ],
    )
    yield from _metric(
        "edgekit_thermal_headroom_celsius",
        "gauge",
        "Degrees until the first zone reaches a trip point that slows what computes, or stops the machine.",
        [({}, now.headroom_c)],
    )
    yield from _metric(
        "edgekit_throttle_events_total",
        "counter",
        "How often the machine began to be slowed down, or events of a counter, since the watch began.",
        (({"cause": cause}, count) for cause, count in totals.throttle_events.items()),
    )
    active = [*now.throttles, *(t for g in now.gpus for t in g.throttles)]
    yield from _metric(
        "edgekit_throttled",
        "gauge",
        "Whether a cause slows the machine down now.",
        (({"cause": t.cause}, float(t.active)) for t in active),
    )
    clocks = [*now.cpu_clocks, *now.gpu_clocks]
    yield from _metric(
        "edgekit_clock_hertz",
        "gauge",
        "Clock of a part of the machine.",
        [*(({"part": c.name}, c.now_hz) for c in clocks), *(({"part": f"gpu {g.uuid}"}, g.clock_hz) for g in now.gpus)],
    )
    yield from _metric(
        "edgekit_load_ratio",
        "gauge",
        "Share of time that a part of the machine is busy.",
        [
            ({"part": "cpu"}, now.cpu_load),
            *(({"part": c.name}, c.load) for c in clocks),
            *(({"part": f"gpu {g.uuid}"}, g.load) for g in now.gpus),
        ],
    )


def _metric(name: str, kind: str, text: str, series: _Series) -> Iterator[str]:
    known: dict[str, float] = {}
    for labels, value in series:
        if value is not None:  # two of one name (a cause that two GPUs have): the larger stands for both
            inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            key = f"{{{inside}}}" if inside else ""
            known[key] = max(known.get(key, value), value)
    if known:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield from (f"{name}{labels} {value:.10g}" for labels, value in known.items())


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
