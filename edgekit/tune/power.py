"""What of the machine's power can be set: a Jetson's power mode, or the cap of a GPU board."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.errors import BackendError, SensorError
from edgekit.telemetry.gpus import GpuBoard
from edgekit.telemetry.nvml import mig_uuids, open_nvml
from edgekit.telemetry.power_mode import PowerMode, read_power_modes
from edgekit.tune.guard import Guard, run_command, set_power_cap

CAPS = 4
"""Power caps that are tried, from the lowest to the default."""


@dataclass(frozen=True)
class PowerSetting:
    """One value: how people call it, and the command that sets it."""

    label: str
    command: str
    value: int


class Control(Protocol):
    """One thing that can be set, its values, and the one that is set now."""

    name: str
    choices: tuple[PowerSetting, ...]
    current: PowerSetting

    def apply(self, setting: PowerSetting) -> None:
        """Set it. Raises BackendError where it is not taken."""
        ...

    def guard(self) -> Guard:
        """What sets back the current value in the end."""
        ...


class ModeControl:
    """A Jetson's power mode by nvpmodel."""

    name = "power mode"

    def __init__(self, prefix: list[str], current: PowerMode, modes: tuple[PowerMode, ...]) -> None:
        self._prefix = prefix
        self.current = _setting(current)
        self.choices = tuple(_setting(m) for m in modes)

    def apply(self, setting: PowerSetting) -> None:
        """Set the mode and ask whether it is set: some are taken after a reboot only."""
        run_command([*self._prefix, str(setting.value)])
        modes = read_power_modes()
        now = modes.current if modes is not None else None
        if now is None or now.id != setting.value:
            raise BackendError(f"power mode {setting.label} is not taken without a reboot")

    def guard(self) -> Guard:
        """Sets the mode of before."""
        return Guard({"argv": [*self._prefix, str(self.current.value)]}, manual=self.current.command)


class CapControl:
    """The power cap of the only GPU board."""

    name = "power cap"

    def __init__(self, uuid: str, current_mw: int, caps_mw: list[int]) -> None:
        self._uuid = uuid
        self.current = self._of(current_mw)
        self.choices = tuple(self._of(mw) for mw in caps_mw)

    def _of(self, milliwatts: int) -> PowerSetting:
        watts = f"{milliwatts / 1000:.0f}"
        return PowerSetting(f"{watts} W", f"sudo nvidia-smi -i {self._uuid} -pl {watts}", milliwatts)

    def apply(self, setting: PowerSetting) -> None:
        """Set the cap."""
        set_power_cap(self._uuid, setting.value)

    def guard(self) -> Guard:
        """Sets the cap of before."""
        return Guard({"uuid": self._uuid, "milliwatts": self.current.value}, manual=self.current.command)


def find_control(root: Path = Path("/"), *, gpu: bool) -> tuple[Control | None, str]:
    """What can be set on this machine, or the sentence why nothing can. `gpu`: whether models run on an NVIDIA GPU.

    Whether it is permitted is found out by setting the value that is set already. The list of modes is read at `root`.
    """
    known = read_power_modes(root)
    if known is not None and known.choices:
        return _modes(known.choices)
    if not gpu:
        return None, "This machine has no power modes, and nothing that runs on its CPU has a power cap to set."
    return _caps()


def _modes(choices: tuple[PowerMode, ...]) -> tuple[Control | None, str]:
    live = read_power_modes()
    binary = shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin:/sbin")
    if live is None or live.current is None or binary is None:
        why = live.reason if live is not None else ""
        return None, f"Power modes are left as they are. {why or 'No nvpmodel can be asked here.'}"
    reasons = []
    prefixes = [[binary, "-m"]]
    if os.geteuid() != 0 and shutil.which("sudo"):
        prefixes.append(["sudo", "-n", binary, "-m"])
    for prefix in prefixes:
        try:
            run_command([*prefix, str(live.current.id)])
        except BackendError as error:
            reasons.append(str(error))
            continue
        return ModeControl(prefix, live.current, choices), ""
    return None, f"Power modes are left as they are: {reasons[0]}. Run with sudo to try them."


def _caps() -> tuple[Control | None, str]:
    opened = open_nvml()
    if isinstance(opened, str):
        return None, f"Power caps are left as they are. {opened}"
    nvml, handles = opened
    if len(handles) != 1:
        return None, f"Power caps are left as they are: this machine has {len(handles)} GPUs, and one is expected."
    if mig_uuids(nvml, handles[0]):
        return None, "Power caps are left as they are: a cap would slow every MIG instance of the GPU."
    try:
        return _cap_of(nvml, handles[0])
    except (BackendError, SensorError) as error:
        return None, f"Power caps are left as they are: {error}. Run with sudo to try them."


def _cap_of(nvml: Any, handle: Any) -> tuple[Control | None, str]:
    board = GpuBoard(nvml, handle)
    limits = board.limits()
    try:
        current_mw = int(nvml.nvmlDeviceGetPowerManagementLimit(handle))
    except nvml.NVMLError:
        limits = None
    if limits is None:
        return None, "This GPU has no power cap to set."
    span_w = limits.default_w - limits.lowest_w
    caps_mw = [round(1000 * (limits.lowest_w + span_w * i / (CAPS - 1))) for i in range(CAPS)]
    set_power_cap(board.uuid, current_mw)
    return CapControl(board.uuid, current_mw, sorted(set(caps_mw))), ""


def _setting(mode: PowerMode) -> PowerSetting:
    return PowerSetting(mode.name, mode.command, mode.id)
