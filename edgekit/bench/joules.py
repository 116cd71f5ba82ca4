"""Joules per inference, where a sensor covers the device that the model runs on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgekit.bench.measure import Contender
from edgekit.bench.report import Joules
from edgekit.errors import SensorError
from edgekit.telemetry import Found, Recorder, Sensor, Unresolved, energy_between, measured_period
from edgekit.telemetry.meter import RESOLVE


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


def joules_of(contender: Contender, sensors: Sequence[Sensor], *, seconds: float) -> tuple[tuple[Joules, ...], str]:
    """Energy of one call by each sensor over a window of at least `seconds`, and the reasons where there is none."""
    periods_s = []
    usable = []
    reasons = []
    for sensor in sensors:
        try:
            periods_s.append(measured_period(sensor))
            usable.append(sensor)
        except SensorError as error:
            reasons.append(str(error))
    if not usable:
        return (), " ".join(reasons)
    window_s = max(seconds, 2 * RESOLVE * max(periods_s))
    with Recorder(usable, interval_s=min(0.05, max(0.005, min(periods_s)))) as recorder:
        start_s = time.monotonic()
        calls = len(contender.slice(window_s))
        end_s = time.monotonic()
    out = []
    for index, (sensor, period_s) in enumerate(zip(usable, periods_s)):
        if index in recorder.dropped:
            reasons.append(recorder.dropped[index])
            continue
        energy = energy_between(
            recorder.samples(index),
            start_s=start_s,
            end_s=end_s,
            period_s=period_s,
            source=sensor.source,
            scope=sensor.scope,
        )
        if isinstance(energy, Unresolved):
            reasons.append(f"{sensor.scope}: {energy.reason}.")
            continue
        out.append(
            Joules(
                joules_per_inference=energy.energy_j / calls,
                uncertainty_j=energy.uncertainty_j / calls,
                power_w=energy.power_w,
                source=energy.source,
                scope=energy.scope,
                inferences=calls,
                duration_s=energy.duration_s,
            )
        )
    return tuple(out), " ".join(reasons)
