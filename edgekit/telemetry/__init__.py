"""Power, energy and temperature of this machine: sensors, a recorder, and the integration of what they say."""

from edgekit.telemetry.find import find_sensors
from edgekit.telemetry.meter import Energy, Unresolved, energy_between, update_period
from edgekit.telemetry.sensors import Found, Recorder, Sample, Sensor, measured_period

__all__ = [
    "Energy",
    "Found",
    "Recorder",
    "Sample",
    "Sensor",
    "Unresolved",
    "energy_between",
    "find_sensors",
    "measured_period",
    "update_period",
]
