"""Joules per inference, where a sensor covers the device that the model runs on.

Several windows of every variant, in turns, each after a run-in and each begun at another phase of the sensor: NVIDIA's
instantaneous sensor may see 25 of every 100 ms (Yang et al., SC'24, arXiv 2312.02741).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgekit.bench.measure import Contender
from edgekit.bench.report import EnergyTrial, Joules
from edgekit.bench.stats import student_t95
from edgekit.errors import SensorError
from edgekit.telemetry import Energy, Found, Recorder, Sensor, Unresolved, measured_period
from edgekit.telemetry.meter import RESOLVE

LONG_S = 5.0
"""Seconds to give each variant where its energy is the question: what the paper above finds enough."""


@dataclass(frozen=True)
class Window:
    """What one sensor said of one window, and the calls that were made in it."""

    energy: Energy
    calls: int


@dataclass
class Gauge:
    """Sensors whose renewal is known, read while work runs. `reasons` says which gave up and why."""

    sensors: list[Sensor]
    periods_s: list[float]
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, sensors: Sequence[Sensor]) -> Gauge:
        """The sensors of these that answer; takes up to 0.3 s each."""
        gauge = cls([], [])
        for sensor in sensors:
            try:
                period_s = measured_period(sensor)
            except SensorError as error:
                gauge.reasons.append(str(error))
                continue
            gauge.sensors.append(sensor)
            gauge.periods_s.append(period_s)
        return gauge

    @property
    def slowest_s(self) -> float:
        """The longest renewal period; 0 without sensors."""
        return max(self.periods_s, default=0.0)

    def over(self, work: Callable[[float], int], seconds: float) -> dict[str, Window]:
        """The energy of `work(seconds)`, which returns its number of calls, by sensor name.

        The window is long enough for the slowest sensor. A sensor that fails is left out from then on.
        """
        window_s = max(seconds, 2 * RESOLVE * self.slowest_s)
        interval_s = min(0.05, max(0.005, min(self.periods_s)))
        with Recorder(self.sensors, periods_s=self.periods_s, interval_s=interval_s) as recorder:
            start_s = recorder.mark()
            calls = work(window_s)
            end_s = recorder.mark()
        out: dict[str, Window] = {}
        for index, sensor in enumerate(tuple(self.sensors)):
            if index in recorder.dropped:
                self._give_up(sensor, recorder.dropped[index])
                continue
            energy = recorder.between(index, start_s, end_s)
            if isinstance(energy, Unresolved):
                self._give_up(sensor, f"{sensor.scope}: {energy.reason}.")
            else:
                out[sensor.name] = Window(energy, calls)
        return out

    def _give_up(self, sensor: Sensor, reason: str) -> None:
        place = self.sensors.index(sensor)
        del self.sensors[place], self.periods_s[place]
        self.reasons.append(reason)


def sensors_for(device: str, found: Found) -> tuple[tuple[Sensor, ...], str]:
    """The sensors that cover a session's `device`, or none and the sentence that says why."""
    own = "gpu" if "CUDA" in device or "TensorRT" in device else "cpu"
    fitting = tuple(s for s in found.sensors if s.part in (own, "board"))
    if fitting:
        return fitting, ""
    reasons = list(found.reasons)
    if found.sensors:
        scopes = ", ".join(s.scope for s in found.sensors)
        reasons.append(f"What can be read here ({scopes}) does not measure the {own.upper()} that runs the model.")
    return (), " ".join(reasons) or "No energy sensor was found."


def joules_of(
    contenders: Sequence[Contender],
    found: Found,
    *,
    seconds: float,
    trials: int = 1,
    idle: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> list[tuple[tuple[Joules, ...], str]]:
    """For each contender the energy of one call by each sensor that covers its device, or the reason for none.

    `seconds` is what each contender runs in all, at least as long as its sensors need for every one of `trials`. With
    `idle` the machine is measured first with all models loaded and nothing running.
    """
    gauges: list[Gauge] = []
    absent: list[str] = []
    for contender in contenders:
        fitting, reason = sensors_for(contender.session.device, found)
        gauges.append(Gauge.of(fitting))
        absent.append(reason)
    resting: dict[str, Energy] = {}
    if idle and (every := list({s.name: s for g in gauges for s in g.sensors}.values())):
        say("energy of doing nothing")
        resting = {n: w.energy for n, w in Gauge.of(every).over(_rest, seconds).items()}
    taken: list[list[dict[str, Window]]] = [[] for _ in contenders]
    for number in range(trials):
        order = range(len(contenders))
        for i in order if number % 2 == 0 else reversed(order):
            if not gauges[i].sensors:
                continue
            if number == 0:
                say(f"energy of {contenders[i].variant}")
            if trials > 1:  # the rise of the power is left out, and the sensor met at another phase each time
                contenders[i].slice(2 * gauges[i].slowest_s)
                time.sleep(gauges[i].slowest_s * number / trials)
            taken[i].append(gauges[i].over(lambda s, c=contenders[i]: len(c.slice(s)), seconds / trials))  # type: ignore[misc]
    out = []
    for gauge, reason, windows in zip(gauges, absent, taken):
        figures = [_joules([w[s.name] for w in windows], resting.get(s.name)) for s in gauge.sensors]
        out.append((tuple(figures), reason or " ".join(gauge.reasons)))
    return out


def _rest(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def _joules(windows: Sequence[Window], resting: Energy | None) -> Joules:
    """All windows of one sensor as one figure.

    The errors of the windows are independent, so their squares add; the uncertainty is never below what the windows
    themselves differ by (Student's t at 95 %).
    """
    calls = sum(w.calls for w in windows)
    energy_j = sum(w.energy.energy_j for w in windows)
    duration_s = sum(w.energy.duration_s for w in windows)
    error_j = math.sqrt(sum(w.energy.uncertainty_j**2 for w in windows)) / calls
    each_j = [w.energy.energy_j / w.calls for w in windows]
    if len(each_j) > 1:
        error_j = max(error_j, student_t95(len(each_j) - 1) * statistics.stdev(each_j) / math.sqrt(len(each_j)))
    mean_j, power_w = energy_j / calls, energy_j / duration_s
    idle_w = active_w = active_j = active_error_j = None
    if resting is not None:
        idle_w = resting.power_w
        active_w = power_w - idle_w
        active_j = active_w * duration_s / calls
        active_error_j = error_j + resting.uncertainty_j / resting.duration_s * duration_s / calls
    return Joules(
        joules_per_inference=mean_j,
        uncertainty_j=error_j,
        power_w=power_w,
        source=windows[0].energy.source,
        scope=windows[0].energy.scope,
        inferences=calls,
        duration_s=duration_s,
        idle_w=idle_w,
        active_w=active_w,
        active_j=active_j,
        active_uncertainty_j=active_error_j,
        trials=tuple(
            EnergyTrial(joules_per_inference=j, uncertainty_j=w.energy.uncertainty_j / w.calls)
            for j, w in zip(each_j, windows)
        ),
    )
