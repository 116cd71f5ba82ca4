"""Which sensors this machine has."""

from __future__ import annotations

from pathlib import Path

from edgekit.telemetry.jetson import find_jetson
from edgekit.telemetry.nvml import find_nvml
from edgekit.telemetry.rapl import find_rapl
from edgekit.telemetry.sensors import Found


def find_sensors(root: Path = Path("/")) -> Found:
    """Energy sensors of the machine whose file tree is at `root`, with a sentence for each kind that is absent.

    NVML asks the driver, which is no file: it is left out for any other tree than the machine's own.
    """
    found = find_jetson(root) + find_rapl(root)
    return found + find_nvml() if root == Path("/") else found
