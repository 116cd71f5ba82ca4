"""What a multiprocessor of each compute capability holds, and how many blocks of a kernel fit on it.

The figures are those of the CUDA programming guide's table "Technical specifications per compute capability" and of
CUDA's own headers (`cuda_occupancy.h`, `cuda/__device/arch_traits.h`); the rule of the occupancy is that of
`cuda_occupancy.h`, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugins_trt.errors import UnsupportedTargetError

WARP = 32
REGISTERS = 65536
"""32-bit registers of a multiprocessor, and at most of a block."""
DEFAULT_SHARED_BYTES = 48 * 1024
"""Shared memory that a block gets without asking; more needs a call to the driver before the launch."""

_REGISTER_UNIT = 256
_PARTITIONS = 4


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor. `shared_bytes` is shared memory of all its blocks; `reserved_bytes` of it go to the
    system for each block. `fp32_per_cycle`: FP32 multiply-adds that it finishes in a cycle."""

    sm: int
    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int
    shared_unit_bytes: int
    fp32_per_cycle: int

    @property
    def warps(self) -> int:
        """Warps that can be resident."""
        return self.threads // WARP

    @property
    def block_shared_bytes(self) -> int:
        """The most shared memory that one block can have, when it asks the driver for it."""
        return self.shared_bytes - self.reserved_bytes


def _multiprocessor(sm: int, threads: int, blocks: int, shared_kib: int) -> Multiprocessor:
    turing = sm < 80
    reserved, unit = (0, 256) if turing else (1024, 128)
    return Multiprocessor(sm, threads, blocks, shared_kib * 1024, reserved, unit, 64 if sm <= 80 else 128)


MULTIPROCESSORS = {
    mp.sm: mp
    for mp in (
        _multiprocessor(75, 1024, 16, 64),
        _multiprocessor(80, 2048, 32, 164),
        _multiprocessor(86, 1536, 16, 100),
        _multiprocessor(87, 1536, 16, 164),
        _multiprocessor(89, 1536, 24, 100),
        _multiprocessor(90, 2048, 32, 228),
        _multiprocessor(100, 2048, 32, 228),
        _multiprocessor(103, 2048, 32, 228),
        _multiprocessor(110, 1536, 24, 228),
        _multiprocessor(120, 1536, 24, 100),
        _multiprocessor(121, 1536, 24, 100),
    )
}


@dataclass(frozen=True)
class Occupancy:
    """`blocks` of a kernel are resident on one multiprocessor at most; `fraction` of its warps are then in use.

    `limited_by` names what stops a further block: "warps", "blocks", "registers", "shared memory"; several may.
    """

    blocks: int
    fraction: float
    limited_by: tuple[str, ...]


def multiprocessor(sm: int) -> Multiprocessor:
    """The limits of compute capability `sm` (87 for 8.7). Raises UnsupportedTargetError for one that is not known."""
    if sm not in MULTIPROCESSORS:
        names = ", ".join(map(str, MULTIPROCESSORS))
        raise UnsupportedTargetError(f"The limits of sm_{sm} are not known here. Known: {names}.")
    return MULTIPROCESSORS[sm]


def occupancy(sm: int, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """The theoretical occupancy of a kernel: `threads` of a block, `registers` of a thread, static and dynamic
    `shared_bytes` of a block. No block fits where `blocks` is 0."""
    mp = multiprocessor(sm)
    warps = -(-threads // WARP)
    warp_registers = _round_up(registers * WARP, _REGISTER_UNIT)
    if warp_registers * _round_up(warps, _PARTITIONS) > REGISTERS:
        by_registers = 0
    elif warp_registers == 0:
        by_registers = mp.blocks
    else:
        by_registers = _PARTITIONS * (REGISTERS // _PARTITIONS // warp_registers) // warps
    shared = _round_up(shared_bytes + mp.reserved_bytes, mp.shared_unit_bytes)
    by_shared = mp.shared_bytes // shared if shared else mp.blocks
    if shared_bytes > mp.block_shared_bytes:
        by_shared = 0
    found = {
        "warps": mp.warps // warps,
        "blocks": mp.blocks,
        "registers": by_registers,
        "shared memory": by_shared,
    }
    blocks = min(found.values())
    return Occupancy(blocks, blocks * warps / mp.warps, tuple(name for name, count in found.items() if count == blocks))


def fp32_flops_per_s(sm: int, *, multiprocessors: int, clock_hz: float) -> float:
    """What the FP32 units of a GPU compute in a second, a multiply-add being two operations."""
    return 2.0 * multiprocessor(sm).fp32_per_cycle * multiprocessors * clock_hz


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
