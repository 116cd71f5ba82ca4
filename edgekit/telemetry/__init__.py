"""Power, energy and temperature of this machine: sensors, a recorder, and the integration of what they say."""

from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.measure import Measured, Meter, measure_energy
from edgekit.telemetry.meter import Active, Energy, Unresolved, above_idle, energy_between, update_period
from edgekit.telemetry.monitor import Monitor, Snapshot
from edgekit.telemetry.replay import Replay
from edgekit.telemetry.sampler import Sampler
from edgekit.telemetry.sensors import Found, Recorder, Sample, Sensor, measured_period
from edgekit.telemetry.totals import Totals
from edgekit.telemetry.watch import Watch

__all__ = [
    "Active",
    "Energy",
    "Found",
    "Measured",
    "Meter",
    "Monitor",
    "Recorder",
    "Replay",
    "Sample",
    "Sampler",
    "Sensor",
    "Snapshot",
    "Totals",
    "Unresolved",
    "Watch",
    "above_idle",
    "energy_between",
    "find_sensors",
    "measure_energy",
    "measured_period",
    "update_period",
]
