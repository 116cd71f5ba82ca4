"""Power, energy and temperature of this machine: sensors, a recorder, and the integration of what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.telemetry.find import find_sensors as find_sensors
    from edgekit.telemetry.measure import Measured as Measured
    from edgekit.telemetry.measure import Meter as Meter
    from edgekit.telemetry.measure import measure_energy as measure_energy
    from edgekit.telemetry.meter import Active as Active
    from edgekit.telemetry.meter import Energy as Energy
    from edgekit.telemetry.meter import Unresolved as Unresolved
    from edgekit.telemetry.meter import above_idle as above_idle
    from edgekit.telemetry.meter import energy_between as energy_between
    from edgekit.telemetry.meter import update_period as update_period
    from edgekit.telemetry.monitor import Monitor as Monitor
    from edgekit.telemetry.monitor import Snapshot as Snapshot
    from edgekit.telemetry.replay import Replay as Replay
    from edgekit.telemetry.sampler import Sampler as Sampler
    from edgekit.telemetry.sensors import Found as Found
    from edgekit.telemetry.sensors import Recorder as Recorder
    from edgekit.telemetry.sensors import Sample as Sample
    from edgekit.telemetry.sensors import Sensor as Sensor
    from edgekit.telemetry.sensors import measured_period as measured_period
    from edgekit.telemetry.totals import Totals as Totals
    from edgekit.telemetry.watch import Watch as Watch

_HOME = {
    "Active": "edgekit.telemetry.meter",
    "Energy": "edgekit.telemetry.meter",
    "Found": "edgekit.telemetry.sensors",
    "Measured": "edgekit.telemetry.measure",
    "Meter": "edgekit.telemetry.measure",
    "Monitor": "edgekit.telemetry.monitor",
    "Recorder": "edgekit.telemetry.sensors",
    "Replay": "edgekit.telemetry.replay",
    "Sample": "edgekit.telemetry.sensors",
    "Sampler": "edgekit.telemetry.sampler",
    "Sensor": "edgekit.telemetry.sensors",
    "Snapshot": "edgekit.telemetry.monitor",
    "Totals": "edgekit.telemetry.totals",
    "Unresolved": "edgekit.telemetry.meter",
    "Watch": "edgekit.telemetry.watch",
    "above_idle": "edgekit.telemetry.meter",
    "energy_between": "edgekit.telemetry.meter",
    "find_sensors": "edgekit.telemetry.find",
    "measure_energy": "edgekit.telemetry.measure",
    "measured_period": "edgekit.telemetry.sensors",
    "update_period": "edgekit.telemetry.meter",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Public names, imported on first use: a server that watches one sensor does not load the recorder of boards."""
    import importlib

    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'edgekit.telemetry' has no attribute {name!r}")
