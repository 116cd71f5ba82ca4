"""NVIDIA GPUs through NVML (nvidia-ml-py): energy counter, power and temperature of each board."""

from __future__ import annotations

import time
from typing import Any, Literal

from edgekit._lazy import available
from edgekit.errors import SensorError
from edgekit.telemetry.sensors import Found, Sample

PERIOD_S = 0.1
"""The energy counter advances in steps of about 100 ms."""


class NvmlSensor:
    """One GPU board. NVML must stay initialised while it is used, as `find_nvml` leaves it."""

    source: Literal["counter"] = "counter"
    part: Literal["gpu"] = "gpu"
    period_s = PERIOD_S

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml` is the initialised pynvml module, `handle` a device of it. Raises SensorError."""
        self._nvml, self._handle = nvml, handle
        try:
            self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
            model = nvml.nvmlDeviceGetName(handle)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: a GPU has no energy counter ({error}); it needs Volta or later.") from error
        self.name = f"nvml-{self.uuid}"
        self.scope = f"GPU board {model}"

    def read(self) -> Sample:
        """Energy since the driver was loaded, power and temperature. Raises SensorError if the counter is gone."""
        nvml = self._nvml
        try:
            energy_j = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: the energy counter of {self.scope} failed ({error}).") from error
        t_s = time.monotonic()
        return Sample(t_s=t_s, power_w=self._power_w(), energy_j=energy_j, temp_c=self._temp_c())

    def _power_w(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000
        except self._nvml.NVMLError:
            return None

    def _temp_c(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU))
        except self._nvml.NVMLError:
            return None


def find_nvml() -> Found:
    """Every GPU that NVML shows, or the reason why there is none."""
    if not available("pynvml"):
        return Found(reasons=("NVML: nvidia-ml-py is not installed. Run: pip install 'edgekit[telemetry]'",))
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    except pynvml.NVMLError as error:
        return Found(reasons=(f"NVML: no NVIDIA driver answers here ({str(error) or type(error).__name__}).",))
    found = Found() if handles else Found(reasons=("NVML: the driver shows no GPU.",))
    for handle in handles:
        try:
            found += Found((NvmlSensor(pynvml, handle),))
        except SensorError as error:
            found += Found(reasons=(str(error),))
    return found
