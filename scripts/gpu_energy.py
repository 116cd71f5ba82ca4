"""Whether a GPU's energy counter and the integral of its power readings agree: joules per inference both ways."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit._lazy import require
from edgekit.errors import MissingDependencyError, SensorError
from edgekit.telemetry import Energy, Recorder, Sensor, above_idle, measured_period
from edgekit.telemetry.gpus import GpuBoard
from edgekit.telemetry.nvml import NvmlPowerSensor, NvmlSensor, open_nvml

GAIN = 0.05
"""A sensor's own scale may be off by this share (arXiv 2312.02741), which the stated uncertainty does not cover."""
TRIALS = 3
SHORTEST_S = 5.0
"""A window's length; the same paper asks for at least 5 s."""


def check_energy(seconds: float, folder: Path) -> dict[str, Any]:
    """Joules per inference of a ResNet-50 by counter and by power, in several trials, beside the idle power."""
    require("onnxruntime", why="run the load")
    require("onnx", why="make the load")
    from edgekit.runtime.ort import OrtSession
    from scripts.gpu_check import BATCH, images, resnet50

    model = folder / "resnet50.onnx"
    resnet50(model, half=False)
    x = images(BATCH, half=False)
    with OrtSession(model, device="cuda:0") as session:
        session.run({"x": x})
        return compare(lambda: session.run({"x": x}), inferences=BATCH, window_s=max(SHORTEST_S, seconds))


def compare(load: Callable[[], Any], *, inferences: int, window_s: float, count: int = TRIALS) -> dict[str, Any]:
    """Run `load` (of that many inferences) over `count` windows, measured by both sensors of the first GPU.

    Raises:
        MissingDependencyError: NVML cannot be used here.
        SensorError: the GPU lacks one of the two sensors.
    """
    opened = open_nvml()
    if isinstance(opened, str):
        raise MissingDependencyError(opened)
    nvml, handles = opened
    sensors: list[Sensor] = [NvmlSensor(nvml, handles[0]), NvmlPowerSensor(nvml, handles[0])]
    reading = {
        k: v for k, v in dataclasses.asdict(GpuBoard(nvml, handles[0]).read()).items() if k not in ("uuid", "mig")
    }
    idle, periods_s = _window(sensors, lambda: time.sleep(0.05), window_s)[:2]
    trials = []
    for _ in range(count):
        energies, _, calls = _window(sensors, load, window_s)
        counter, power = energies
        difference_j = abs(counter.energy_j - power.energy_j)
        stated_j = counter.uncertainty_j + power.uncertainty_j
        trials.append(
            {
                "counter_j_per_inference": counter.energy_j / calls / inferences,
                "counter_uncertainty_j": counter.uncertainty_j / calls / inferences,
                "power_j_per_inference": power.energy_j / calls / inferences,
                "power_uncertainty_j": power.uncertainty_j / calls / inferences,
                "above_idle_j_per_inference": above_idle(counter, idle[0]).active_j / calls / inferences,
                "power_w": counter.power_w,
                "difference_percent": 100 * difference_j / counter.energy_j,
                "within_stated_uncertainty": difference_j <= stated_j,
                "within_it_and_gain": difference_j <= stated_j + GAIN * counter.energy_j,
            }
        )
    return {
        "ok": all(t["within_it_and_gain"] for t in trials),
        "idle_w_by_counter_and_power": [e.power_w for e in idle],
        "period_ms_of_counter_and_power": [1000 * p for p in periods_s],
        "power_readings": sensors[1].scope,
        "trials": trials,
        "reading": reading,
    }


def _window(sensors: list[Sensor], load: Callable[[], Any], window_s: float) -> tuple[list[Energy], list[float], int]:
    """Energy by each sensor while `load` runs again and again for `window_s`, its period, and how often it ran."""
    calls = 0
    load()
    periods_s = [measured_period(s, limit_s=0.6) for s in sensors]
    with Recorder(sensors, periods_s=periods_s, interval_s=0.02) as recorder:
        rise_s = time.monotonic() + min(0.5, window_s / 4)
        while time.monotonic() < rise_s:  # the power rises for a while, which is no part of the window
            load()
        start_s = recorder.mark()
        while time.monotonic() < start_s + window_s:
            load()
            calls += 1
        end_s = recorder.mark()
    energies = []
    for i, sensor in enumerate(sensors):
        found = recorder.between(i, start_s, end_s)
        if not isinstance(found, Energy):
            raise SensorError(f"{sensor.scope}: {found.reason}.")
        energies.append(found)
    return energies, periods_s, calls
