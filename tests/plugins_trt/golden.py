"""The record of what kernels take: `python -m tests.plugins_trt.golden` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugins_trt.compile import nvrtc_version
from plugins_trt.registry import operators
from plugins_trt.report import kernel_reports

PATH = Path(__file__).with_name("golden.json")
TARGETS = (75, 80, 87, 89, 90, 100, 110, 120)


def measured() -> dict[str, Any]:
    """NVRTC's release, and for each operator and target the registers, spills and occupancy of its first tactic."""
    kernels: dict[str, dict[str, Any]] = {}
    for report in kernel_reports(operators().values(), TARGETS):
        kernels.setdefault(report.operator, {})[str(report.sm)] = {
            "registers": report.resources.registers,
            "spills": report.resources.spills,
            "shared_bytes": report.shared_bytes,
            "occupancy": round(report.occupancy.fraction, 4),
        }
    return {"nvrtc": ".".join(map(str, nvrtc_version())), "kernels": kernels}


if __name__ == "__main__":
    PATH.write_text(json.dumps(measured(), indent=1) + "\n")
