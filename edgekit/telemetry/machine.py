"""What the machine is made of: processor, memory, container, as files under /proc and /sys tell."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.telemetry.sysfs import read_int, read_text

X86_SIMD = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16")
ARM_SIMD = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"}
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd42": "Cortex-A78AE",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
    "0xd83": "Neoverse V3AE",
    "0x004": "Carmel",
}


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor: `logical` CPUs in the machine, `usable` by this process, and the vector extensions for INT8."""

    model: str
    architecture: str
    logical: int
    usable: float
    simd: tuple[str, ...]

    @property
    def fast_int8(self) -> bool:
        """Whether it multiplies 8-bit integers four at a time into 32 bits (VNNI, AMX, dot product)."""
        return any(s in self.simd for s in ("avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory: in the machine, free for new work, and the container's limit where there is one."""

    total: int
    available: int
    limit: int | None


def cpu(root: Path = Path("/")) -> Cpu:
    """The processor of the machine whose file tree is at `root`."""
    text = read_text(root / "proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    logical = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or os.cpu_count() or 1
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    arm = "Features" in fields
    simd = tuple(n for f, n in ARM_SIMD.items() if f in flags) if arm else tuple(f for f in X86_SIMD if f in flags)
    part = fields.get("CPU part", "")
    model = fields.get("model name") or (_ARM_CORES.get(part) or f"part {part}" if part else platform.machine())
    own = root == Path("/")
    architecture = platform.machine() if own else ("aarch64" if arm else "x86_64")
    usable: float = len(os.sched_getaffinity(0)) if own and hasattr(os, "sched_getaffinity") else logical
    quota = _quota(root)
    return Cpu(model, architecture, logical, min(usable, quota) if quota else usable, simd)


def _quota(root: Path) -> float | None:
    """CPUs that the container may use, or None without a limit."""
    text = read_text(root / "sys/fs/cgroup/cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
        return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None
    quota_us = read_int(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_us = read_int(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def memory(root: Path = Path("/")) -> Memory | None:
    """The memory of the machine at `root`, or None where it cannot be read."""
    text = read_text(root / "proc/meminfo") or ""
    kilobytes = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    if "MemTotal" not in kilobytes:
        return None
    total = kilobytes["MemTotal"] * 1024
    limit = read_int(root / "sys/fs/cgroup/memory.max")
    if limit is None:
        limit = read_int(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    available = kilobytes.get("MemAvailable", kilobytes.get("MemFree", 0)) * 1024
    return Memory(total, available, limit if limit is not None and 0 < limit < total else None)


def container(root: Path = Path("/")) -> str | None:
    """The kind of container that this is, or None outside of one."""
    if (root / ".dockerenv").exists():
        return "Docker"
    if (root / "run/.containerenv").exists():
        return "Podman"
    groups = read_text(root / "proc/1/cgroup") or ""
    for mark, name in (("kubepods", "Kubernetes"), ("docker", "Docker"), ("lxc", "LXC"), ("containerd", "containerd")):
        if mark in groups:
            return name
    return None


def system(root: Path = Path("/")) -> str:
    """The operating system's own name, or the kernel's."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        match = re.search(r'^PRETTY_NAME="?([^"\n]+)', read_text(root / name) or "", re.MULTILINE)
        if match:
            return match[1]
    release = read_text(root / "proc/sys/kernel/osrelease")
    if release is None and root == Path("/"):
        release = platform.release()
    return f"Linux {release}" if release else "unknown system"
