"""NVIDIA GPUs through NVML (nvidia-ml-py): the energy counter, or power readings, of each board as a sensor."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any, Literal

from edgekit._lazy import available
from edgekit.errors import SensorError, UsageError
from edgekit.telemetry.sensors import Found, Sample

PERIOD_S = 0.1
"""The energy counter advances, and instantaneous power is renewed, in steps of about 100 ms."""
AVERAGE_S = 1.0
"""`nvmlDeviceGetPowerUsage` is the mean of the last second on Ampere and later, but for GA100."""
SHORT = 12
"""Characters of a UUID that tell boards apart: `GPU-` and eight digits."""
_DRIVER = "libnvidia-ml.so.1"
"""The part of NVIDIA's driver that pynvml talks to."""
POWER_AVERAGE, POWER_INSTANT = 185, 186
"""Field numbers; as pairs with a scope: 0 the GPU, 1 the module, 2 the memory."""


class NvmlSensor:
    """One GPU board. NVML must stay initialised while it is used, as `find_nvml` leaves it."""

    source: Literal["counter"] = "counter"
    part: Literal["gpu"] = "gpu"
    period_s = PERIOD_S

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml` is the initialised pynvml module, `handle` a device of it. Raises SensorError."""
        self._nvml, self._handle = nvml, handle
        try:
            self.uuid, model = _identity(nvml, handle)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: a GPU has no energy counter ({error}); it needs Volta or later.") from error
        self.name = f"nvml-{self.uuid}"
        self.scope = _scope(nvml, handle, model)

    def read(self) -> Sample:
        """Energy since the driver was loaded, power and temperature. Raises SensorError if the counter is gone."""
        nvml = self._nvml
        try:
            energy_j = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: the energy counter of {self.scope} failed ({error}).") from error
        t_s = time.monotonic()
        power_w = average_power_w(nvml, self._handle)
        return Sample(t_s=t_s, power_w=power_w, energy_j=energy_j, temp_c=temperature_c(nvml, self._handle))


class NvmlPowerSensor:
    """One GPU board by its power readings: for boards without an energy counter, and to check a counter against.

    On A100 and H100 an instantaneous reading sees 25 ms of every 100 ms (arXiv 2312.02741), which the uncertainty of a
    long window covers, and may be off by about 5 % in scale, which it does not.
    """

    source: Literal["power"] = "power"
    part: Literal["gpu"] = "gpu"

    def __init__(self, nvml: Any, handle: Any) -> None:
        """As `NvmlSensor`. Raises SensorError if the board gives no power."""
        self._nvml, self._handle = nvml, handle
        try:
            self.uuid, model = _identity(nvml, handle)
        except nvml.NVMLError as error:
            raise SensorError(f"NVML: a GPU does not tell its name ({error}).") from error
        self._instant = instant_power_w(nvml, handle) is not None
        self.period_s = PERIOD_S if self._instant else AVERAGE_S
        self.name = f"nvml-power-{self.uuid}"
        kind = "instantaneous readings" if self._instant else "readings that are averages of a second"
        self.scope = f"{_scope(nvml, handle, model)}, {kind}"
        self.read()

    def read(self) -> Sample:
        """Power and temperature. Raises SensorError if there is none (any more)."""
        read = instant_power_w if self._instant else average_power_w
        power_w = read(self._nvml, self._handle)
        if power_w is None:
            raise SensorError(f"NVML: {self.scope} gives no power.")
        t_s = time.monotonic()
        return Sample(t_s=t_s, power_w=power_w, temp_c=temperature_c(self._nvml, self._handle))


def average_power_w(nvml: Any, handle: Any) -> float | None:
    """Watts, the mean of the last second on most GPUs; None where not supported."""
    try:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    except nvml.NVMLError:
        return None


def instant_power_w(nvml: Any, handle: Any) -> float | None:
    """Watts of the last sampling of the board's sensor; None where not supported (older drivers and GPUs)."""
    milliwatts = fields(nvml, handle, [(POWER_INSTANT, 0)])[0]
    return None if milliwatts is None else milliwatts / 1000


def temperature_c(nvml: Any, handle: Any) -> float | None:
    """Degrees Celsius of the GPU's hottest sensor; None where not supported."""
    try:
        return float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    except nvml.NVMLError:
        return None


def fields(nvml: Any, handle: Any, wanted: Sequence[int | tuple[int, int]]) -> list[float | None]:
    """Field values of a GPU in the order asked for; a field is a number, or a number and a scope.

    Each has a return code of its own: None where the driver does not know or support one.
    """
    try:
        values = nvml.nvmlDeviceGetFieldValues(handle, list(wanted))
    except nvml.NVMLError:
        return [None] * len(wanted)
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
    return [
        float(getattr(v.value, members[v.valueType])) if v.nvmlReturn == 0 and v.valueType < len(members) else None
        for v in values
    ]


def _identity(nvml: Any, handle: Any) -> tuple[str, str]:
    return str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))


def _scope(nvml: Any, handle: Any, model: str) -> str:
    count = len(mig_uuids(nvml, handle))
    return f"GPU board {model}" + (f" (all of its {count} MIG instances)" if count else "")


def mig_uuids(nvml: Any, handle: Any) -> tuple[str, ...]:
    """UUIDs of the MIG instances of a board. Power and energy exist for the board only, never for an instance."""
    uuids = []
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return ()
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return ()
    for index in range(slots):
        try:
            uuids.append(str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))))
        except nvml.NVMLError:  # this slot holds no instance
            continue
    return tuple(uuids)


def open_nvml() -> tuple[Any, list[Any]] | str:
    """The initialised pynvml module and the handle of every board, or the sentence why there is none."""
    if not available("pynvml"):
        return "NVML: nvidia-ml-py is not installed. Run: pip install 'edgekit[telemetry]'"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:  # found out before pynvml, which is large, is loaded for nothing
        return "NVML: no NVIDIA driver answers here (NVML Shared Library Not Found)."
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    except pynvml.NVMLError as error:
        return f"NVML: no NVIDIA driver answers here ({str(error) or type(error).__name__})."
    return (pynvml, handles) if handles else "NVML: the driver shows no GPU."


def board_of(nvml: Any, handles: Sequence[Any], uuid: str) -> Any:
    """The handle of the board whose UUID, or whose MIG instance's UUID, is or starts with `uuid`.

    NVML numbers GPUs otherwise than CUDA and ignores CUDA_VISIBLE_DEVICES: a UUID is the only name both share.

    Raises:
        UsageError: no board, or more than one, fits.
    """
    names: dict[int, list[str]] = {}
    for i, handle in enumerate(handles):
        try:
            names[i] = [str(nvml.nvmlDeviceGetUUID(handle)), *mig_uuids(nvml, handle)]
        except nvml.NVMLError:
            names[i] = []
    fitting = [i for i, own in names.items() if uuid and any(name.startswith(uuid) for name in own)]
    if len(fitting) != 1:
        known = ", ".join(own[0] for own in names.values() if own) or "none"
        what = "fits more than one GPU" if fitting else "is no GPU or MIG instance here"
        raise UsageError(f"GPU UUID '{uuid}' {what}. GPUs: {known}.")
    return handles[fitting[0]]


def find_nvml(uuid: str | None = None) -> Found:
    """Every GPU that NVML shows, or the reason why there is none; with `uuid` only the board that it names.

    Raises:
        UsageError: `uuid` names no board, or several.
    """
    opened = open_nvml()
    if isinstance(opened, str):
        return Found(reasons=(opened,))
    nvml, handles = opened
    found = Found()
    for handle in handles if uuid is None else [board_of(nvml, handles, uuid)]:
        sensor = _sensor(nvml, handle)
        if isinstance(sensor, str):
            found += Found(reasons=(sensor,))
            continue
        if len(handles) > 1:  # boards of one model are told apart
            sensor.scope += f" {sensor.uuid[:SHORT]}"
        found += Found((sensor,))
    return found


def _sensor(nvml: Any, handle: Any) -> NvmlSensor | NvmlPowerSensor | str:
    """The board's counter, else its power readings, else the sentence why there is neither."""
    try:
        return NvmlSensor(nvml, handle)
    except SensorError as error:
        reason = str(error)
    try:
        return NvmlPowerSensor(nvml, handle)
    except SensorError:
        return reason
