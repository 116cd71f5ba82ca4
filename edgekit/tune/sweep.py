"""Measuring a model over its settings and the machine's, which is set back in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edgekit import __version__
from edgekit.bench.inputs import Inputs, bench_inputs
from edgekit.bench.joules import Gauge, sensors_for
from edgekit.bench.report import Machine
from edgekit.bench.runner import this_machine
from edgekit.bench.stats import percentile
from edgekit.errors import BackendError, UsageError
from edgekit.package import Package
from edgekit.runtime.ort import physical_cores
from edgekit.runtime.select import not_runnable, open_session, runnable
from edgekit.runtime.session import Session
from edgekit.telemetry import Found, Monitor, find_sensors
from edgekit.tensors import Tensors
from edgekit.tune.front import Objective, Point, allowed, as_good, best, pareto, setting_text
from edgekit.tune.power import Control, PowerSetting, find_control

BATCHES = (1, 2, 4, 8, 16, 32)
GPU_STREAMS, CPU_STREAMS = (1, 2, 4), (1, 2)


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every point, the front, the chosen one with the commands that set it; `chosen` is None if none is allowed."""

    schema: int = 1
    edgekit: str
    package: str
    created: str
    machine: Machine
    objective: Objective
    max_p99_s: float | None
    max_power_w: float | None
    control: str | None
    source: str | None
    scope: str | None
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    chosen: Point | None
    as_good: int
    commands: tuple[str, ...]
    skipped: dict[str, str] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """What is tried. `variants` None: all that run here; `threads` and `streams` None: what suits the device."""

    variants: Sequence[str] | None = None
    batches: Sequence[int] = BATCHES
    threads: Sequence[int] | None = None
    streams: Sequence[int] | None = None
    power: bool = True


def tune(
    package: Package,
    *,
    objective: Objective,
    max_p99_s: float | None = None,
    max_power_w: float | None = None,
    space: Space = Space(),
    seconds: float = 1.0,
    device: str | None = None,
    root: Path = Path("/"),
    sensors: Found | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> TuneReport:
    """Measure every setting for `seconds` (longer where a sensor needs it) and choose the best that is allowed.

    Larger batches are left out once p99 is past its limit. The power setting is that of before when this returns or
    raises, and also when the process is killed.

    Raises:
        UsageError: energy is the objective or power the limit where nothing measures it, or nothing can run.
        BackendError: the power setting could not be set back; the message has the command.
    """
    chosen_ids = _variants(package, space.variants, device)
    found = find_sensors(root) if sensors is None else sensors
    inputs = bench_inputs(package)
    with open_session(package, variant=chosen_ids[0], device=device) as session:
        where = session.device
    on_gpu = "CUDA" in where or "TensorRT" in where
    gauge, reason = _gauge(where, found)
    if not gauge.sensors and (objective == "energy" or max_power_w is not None):
        what = "--objective energy" if objective == "energy" else "--max-power"
        raise UsageError(f"{what} needs a sensor of what runs the model. {reason} Use --objective latency.")
    control, left = find_control(root, gpu=on_gpu) if space.power else (None, "The power setting is left as it is.")
    notes = [n for n in (left, "" if gauge.sensors else f"energy is not measured: {reason}") if n]
    sensor = gauge.sensors[0] if gauge.sensors else None
    measure = _Measure(package, inputs, space, gauge, Monitor(root), max_p99_s, seconds, device, on_gpu, say)
    points: list[Point] = []
    with control.guard() if control is not None else nullcontext():
        for label in _each_power(control, notes, say):
            for variant in chosen_ids:
                points += measure.points(variant, label)
    fitting = allowed(points, max_p99_s=max_p99_s, max_power_w=max_power_w)
    pick = best(fitting, objective)
    return TuneReport(
        edgekit=__version__,
        package=package.path.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=this_machine(),
        objective=objective,
        max_p99_s=max_p99_s,
        max_power_w=max_power_w,
        control=control.name if control is not None else None,
        source=sensor.source if sensor is not None else None,
        scope=sensor.scope if sensor is not None else None,
        points=tuple(points),
        front=tuple(pareto(fitting)),
        chosen=pick,
        as_good=as_good(fitting, pick) if pick is not None and objective == "energy" else 0,
        commands=_commands(package, pick, control, on_gpu, device) if pick is not None else (),
        skipped={} if space.variants else dict(not_runnable(package, device=device)),
        notes=(*notes, *measure.notes, *gauge.reasons),
    )


def _variants(package: Package, wanted: Sequence[str] | None, device: str | None) -> list[str]:
    if package.stage_names:
        raise UsageError(f"'{package.path.name}' is made of stages; tune each: {', '.join(package.stage_names)}.")
    if wanted:
        return [package.variant(v).id for v in dict.fromkeys(wanted)]
    able = [v.id for v in runnable(package, device=device)]
    if not able:
        raise UsageError(f"'{package.path.name}' has no variant that this machine can run. Export an ONNX variant.")
    return able


def _gauge(device: str, found: Found) -> tuple[Gauge, str]:
    fitting, reason = sensors_for(device, found)
    gauge = Gauge.of(fitting[:1])
    return gauge, reason or " ".join(gauge.reasons)


def _each_power(control: Control | None, notes: list[str], say: Callable[[str], None]) -> Iterator[str]:
    """The label of each power setting while it is set; what is not taken is noted and left out."""
    if control is None:
        yield ""
        return
    for setting in control.choices:
        say(f"{control.name} {setting.label}")
        try:
            control.apply(setting)
        except BackendError as error:
            notes.append(f"{control.name} {setting.label} was left out: {error}")
            continue
        yield setting.label


@dataclass
class _Measure:
    """One variant at one power setting, over threads, streams and batches."""

    package: Package
    inputs: Inputs
    space: Space
    gauge: Gauge
    monitor: Monitor
    max_p99_s: float | None
    seconds: float
    device: str | None
    on_gpu: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        cores = physical_cores()
        self._threads = tuple(self.space.threads or ((cores,) if self.on_gpu else _doubling(cores)))
        self._streams = tuple(self.space.streams or (GPU_STREAMS if self.on_gpu else CPU_STREAMS))

    def points(self, variant: str, power: str) -> list[Point]:
        """Every point of a variant, as it is measured."""
        out = []
        for threads in self._threads:
            with open_session(self.package, variant=variant, threads=threads, device=self.device) as session:
                for streams in self._streams:
                    out += self._batches(session, threads, streams, power)
        return out

    def _batches(self, session: Session, threads: int, streams: int, power: str) -> list[Point]:
        out: list[Point] = []
        for batch in sorted(set(self.space.batches)) if self.inputs.dynamic else (1,):
            text = setting_text(session.variant, batch, threads, streams)
            try:
                point = self._point(session, batch, threads, streams, power)
            except BackendError as error:
                self.notes.append(f"{text} failed: {error}")
                break
            out.append(point)
            energy = "" if point.joules_per_sample is None else f", {1e3 * point.joules_per_sample:.3g} mJ/sample"
            self.say(f"{text}: p99 {1e3 * point.p99_s:.3g} ms, {point.samples_per_s:.4g}/s{energy}")
            if self.max_p99_s is not None and point.p99_s > 2 * self.max_p99_s:
                break
        return out

    def _point(self, session: Session, batch: int, threads: int, streams: int, power: str) -> Point:
        feeds = self.inputs.feeds(batch)
        run_for(session, feeds, streams, 0.1 * self.seconds)
        taken: list[float] = []
        spans: list[float] = []

        def work(seconds: float) -> int:
            begun = time.perf_counter()
            taken.extend(run_for(session, feeds, streams, seconds))
            spans.append(time.perf_counter() - begun)
            return len(taken)

        name = self.gauge.sensors[0].name if self.gauge.sensors else None
        windows = self.gauge.over(work, self.seconds) if name is not None else {}
        if not taken:
            work(self.seconds)
        window = windows.get(name) if name is not None else None
        per_sample = None if window is None else window.calls * batch
        return Point(
            variant=session.variant,
            batch=batch,
            threads=threads,
            streams=streams,
            power=power,
            calls=len(taken),
            p50_s=percentile(taken, 0.5),
            p99_s=percentile(taken, 0.99),
            samples_per_s=batch * len(taken) / spans[0],
            joules_per_sample=None if window is None or not per_sample else window.energy.energy_j / per_sample,
            uncertainty_j=None if window is None or not per_sample else window.energy.uncertainty_j / per_sample,
            power_w=None if window is None else window.energy.power_w,
            throttled=self.monitor.read().throttled,
        )


def run_for(session: Session, feeds: Sequence[Tensors], streams: int, seconds: float) -> list[float]:
    """Latencies of calls by `streams` callers at once over `seconds`, none of which goes on afterwards.

    Raises what a call raises.
    """
    taken: list[list[float]] = [[] for _ in range(streams)]
    failed: list[BaseException] = []
    deadline = time.perf_counter() + seconds

    def call(own: list[float], first: int) -> None:
        number = first
        try:
            while not own or (time.perf_counter() < deadline and not failed):
                start = time.perf_counter()
                session.run(feeds[number % len(feeds)])
                own.append(time.perf_counter() - start)
                number += streams
        except Exception as error:  # brought to the caller below
            failed.append(error)

    threads = [threading.Thread(target=call, args=(own, i), daemon=True) for i, own in enumerate(taken)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: the session must not be closed under a call
        failed.append(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failed:
        raise failed[0]
    return [x for own in taken for x in own]


def _doubling(cores: int) -> tuple[int, ...]:
    """1, 2, 4, … and all cores."""
    return tuple(sorted({cores, *(2**i for i in range(cores.bit_length()) if 2**i <= cores)}))


def _commands(
    package: Package, point: Point, control: Control | None, on_gpu: bool, device: str | None
) -> tuple[str, ...]:
    """What sets the point: the power setting, then the server."""
    settings: Mapping[str, PowerSetting] = {} if control is None else {s.label: s for s in control.choices}
    serve = f"edgekit serve {package.path.name} --variant {point.variant}"
    serve += f" --device {device}" if device else ""
    serve += "" if on_gpu else f" --threads {point.threads}"
    serve += f" --instances {point.streams} --max-batch {point.batch}"
    return (*([settings[point.power].command] if point.power in settings else []), serve)
