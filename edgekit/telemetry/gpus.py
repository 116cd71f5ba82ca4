"""Everything that NVML tells about a GPU board: power and its limits, temperatures, clocks, load, throttle causes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.errors import SensorError
from edgekit.telemetry.nvml import POWER_AVERAGE, POWER_INSTANT, average_power_w, fields, mig_uuids, open_nvml
from edgekit.telemetry.thermal import Trip
from edgekit.telemetry.throttle import Throttle

_MEMORY_TEMP = 82
_VIOLATIONS = {74: "power cap", 75: "thermal", 77: "board limit"}
"""Cumulative nanoseconds. The fields of software and hardware thermal slowdown differ between driver versions."""
_POWER_CAP = 0x4
_CAUSES = {
    _POWER_CAP: "GPU software power cap",
    0x8: "GPU hardware slowdown",
    0x20: "GPU software thermal slowdown",
    0x40: "GPU hardware thermal slowdown",
    0x80: "GPU power brake",
}
"""Bits of the clock event mask that slow the GPU down; idle, application clocks, sync boost and display do not."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One board now; None is not supported by this GPU or driver.

    `power_w` is the last sampling of the sensor, `average_power_w` the mean of a second, `module_power_w` includes the
    processor on superchips. `energy_j` counts since the driver was loaded, `violations_s` how long each cause has
    slowed the GPU. `trips` are the slowdown and shutdown temperatures. Shares are 0 to 1.
    """

    uuid: str
    name: str
    mig: tuple[str, ...]
    power_w: float | None
    average_power_w: float | None
    module_power_w: float | None
    power_limit_w: float | None
    energy_j: float | None
    temp_c: float | None
    memory_temp_c: float | None
    margin_c: float | None
    trips: tuple[Trip, ...]
    clock_hz: float | None
    max_clock_hz: float | None
    memory_clock_hz: float | None
    load: float | None
    memory_share: float | None
    throttles: tuple[Throttle, ...]
    violations_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """Watts that a board may be capped to, and its cap from the factory."""

    lowest_w: float
    highest_w: float
    default_w: float


class GpuBoard:
    """One GPU board. What it says it does not support is not asked for again."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml` is the initialised pynvml module, `handle` a device of it."""
        self._nvml, self._handle = nvml, handle
        self._absent: set[tuple[str, tuple[Any, ...]]] = set()
        self.uuid = str(self._ask("nvmlDeviceGetUUID") or "unknown")
        self.name = str(self._ask("nvmlDeviceGetName") or "GPU")
        self._max_clock_mhz = self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        rated = self._ask("nvmlDeviceGetDefaultApplicationsClock", nvml.NVML_CLOCK_GRAPHICS)
        self._rated_mhz = rated or self._max_clock_mhz
        self._trips = self._read_trips()

    def limits(self) -> PowerLimits | None:
        """The range of its power cap, or None where it has none."""
        span = self._ask("nvmlDeviceGetPowerManagementLimitConstraints")
        default = self._ask("nvmlDeviceGetPowerManagementDefaultLimit")
        if span is None or default is None:
            return None
        return PowerLimits(span[0] / 1000, span[1] / 1000, default / 1000)

    def read(self) -> GpuReading:
        """The board now. Raises SensorError once the GPU is lost."""
        nvml = self._nvml
        values = fields(
            nvml,
            self._handle,
            [(POWER_INSTANT, 0), (POWER_AVERAGE, 0), (POWER_INSTANT, 1), _MEMORY_TEMP, *_VIOLATIONS],
        )
        instant, average, module, memory_temp, *violations = values
        usage_w = average_power_w(nvml, self._handle)
        clock = self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        temp = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        return GpuReading(
            uuid=self.uuid,
            name=self.name,
            mig=mig_uuids(nvml, self._handle),
            power_w=_times(instant, 1e-3) if instant is not None else usage_w,
            average_power_w=_times(average, 1e-3) if average is not None else usage_w,
            module_power_w=_times(module, 1e-3),
            power_limit_w=_times(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            energy_j=_times(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            temp_c=_times(temp, 1.0),
            memory_temp_c=memory_temp,
            margin_c=_times(self._ask("nvmlDeviceGetMarginTemperature"), 1.0),
            trips=self._trips,
            clock_hz=_times(clock, 1e6),
            max_clock_hz=_times(self._max_clock_mhz, 1e6),
            memory_clock_hz=_times(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            load=None if rates is None else rates.gpu / 100,
            memory_share=None if memory is None or not memory.total else memory.used / memory.total,
            throttles=self._throttles(clock),
            violations_s={n: ns / 1e9 for n, ns in zip(_VIOLATIONS.values(), violations) if ns is not None},
        )

    def _throttles(self, clock_mhz: Any) -> tuple[Throttle, ...]:
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:  # the name until driver 535
            mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if mask is None:
            return ()
        below_rated = clock_mhz is not None and self._rated_mhz is not None and clock_mhz < self._rated_mhz
        return tuple(
            Throttle(cause, bool(mask & bit) and (bit != _POWER_CAP or below_rated)) for bit, cause in _CAUSES.items()
        )

    def _read_trips(self) -> tuple[Trip, ...]:
        nvml = self._nvml
        kinds = (
            ("passive", nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            ("critical", nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
        )
        values = [(kind, self._ask("nvmlDeviceGetTemperatureThreshold", number)) for kind, number in kinds]
        return tuple(Trip(kind, float(value)) for kind, value in values if value)

    def _ask(self, name: str, *args: Any) -> Any:
        """The answer of one NVML function, or None where it has none. Raises SensorError if the GPU is lost."""
        nvml = self._nvml
        if (name, args) in self._absent:
            return None
        try:
            return getattr(nvml, name)(self._handle, *args)
        except AttributeError:  # an older nvidia-ml-py
            self._absent.add((name, args))
            return None
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                raise SensorError("NVML: a GPU has fallen off the bus. Restart the machine.") from error
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                self._absent.add((name, args))
            return None


def find_gpus() -> tuple[list[GpuBoard], str]:
    """Every board of which NVML tells something, and the sentence why there is none.

    Orin's NVML starts but supports nothing: its GPU is read through devfreq instead.
    """
    opened = open_nvml()
    if isinstance(opened, str):
        return [], opened
    nvml, handles = opened
    boards = []
    for handle in handles:
        try:
            board = GpuBoard(nvml, handle)
            now = board.read()
        except SensorError as error:
            return [], str(error)
        if any(v is not None for v in (now.power_w, now.temp_c, now.clock_hz, now.load)):
            boards.append(board)
    return boards, "" if boards else "NVML: the driver supports no reading of this GPU."


def _times(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor
