"""Readings of a machine as rows of one long table: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TextIO

from edgekit._files import storage
from edgekit._lazy import require
from edgekit.errors import UsageError
from edgekit.telemetry.monitor import Snapshot


class Row(NamedTuple):
    """One value. `unix_s` is wall time, `t_s` a clock that never jumps; units are SI, shares are 0 to 1."""

    unix_s: float
    t_s: float
    part: str
    name: str
    quantity: str
    unit: str
    value: float


def rows(now: Snapshot) -> Iterator[Row]:
    """Every value of one reading that was measured. What is None is left out."""
    for part, name, quantity, unit, value in _values(now):
        if value is not None:
            yield Row(now.unix_s, now.t_s, part, name, quantity, unit, float(value))


def _values(now: Snapshot) -> Iterator[tuple[str, str, str, str, float | None]]:
    for power in now.powers:
        yield "power", power.name, "power", "W", power.power_w
        yield "power", power.name, "energy", "J", power.energy_j
    for rail in now.rails:
        yield "rail", rail.label, "power", "W", rail.power_w
        yield "rail", rail.label, "voltage", "V", rail.voltage_v
        yield "rail", rail.label, "current", "A", rail.current_a
    for zone in now.zones:
        yield "zone", zone.name, "temperature", "C", zone.temp_c
    for part, clocks in (("cpu", now.cpu_clocks), ("gpu", now.gpu_clocks)):
        for clock in clocks:
            yield part, clock.name, "clock", "Hz", clock.now_hz
            yield part, clock.name, "load", "1", clock.load
    for gpu in now.gpus:
        yield "gpu", gpu.uuid, "power", "W", gpu.power_w
        yield "gpu", gpu.uuid, "average_power", "W", gpu.average_power_w
        yield "gpu", gpu.uuid, "energy", "J", gpu.energy_j
        yield "gpu", gpu.uuid, "temperature", "C", gpu.temp_c
        yield "gpu", gpu.uuid, "memory_temperature", "C", gpu.memory_temp_c
        yield "gpu", gpu.uuid, "clock", "Hz", gpu.clock_hz
        yield "gpu", gpu.uuid, "memory_clock", "Hz", gpu.memory_clock_hz
        yield "gpu", gpu.uuid, "load", "1", gpu.load
        yield "gpu", gpu.uuid, "memory", "1", gpu.memory_share
        for cause, seconds in gpu.violations_s.items():
            yield "gpu", gpu.uuid, f"slowed_by_{cause.replace(' ', '_')}", "s", seconds
        for throttle in gpu.throttles:
            yield "throttle", f"{gpu.uuid} {throttle.cause}", "active", "1", throttle.active
    yield "cpu", "all", "load", "1", now.cpu_load
    yield "memory", "all", "used", "1", now.memory_share
    for fan in now.fans:
        yield "fan", fan.name, "duty", "1", fan.duty
        yield "fan", fan.name, "speed", "rpm", fan.rpm
    for throttle in now.throttles:
        yield "throttle", throttle.cause, "active", "1", throttle.active
        yield "throttle", throttle.cause, "events", "1", throttle.events


class Writer(Protocol):
    """Takes readings until it is closed."""

    def write(self, now: Snapshot) -> None:
        """Add one reading."""
        ...

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CsvWriter:
    """Rows as CSV with a header; each reading is on the disk (or through the pipe) before the next is taken."""

    def __init__(self, stream: TextIO, *, close: bool) -> None:
        self._stream, self._close = stream, close
        self._csv = csv.writer(stream, lineterminator="\n")

    def __enter__(self) -> CsvWriter:
        self._csv.writerow(Row._fields)
        return self

    def write(self, now: Snapshot) -> None:
        """Add one reading."""
        self._csv.writerows((f"{r.unix_s:.3f}", f"{r.t_s:.4f}", *r[2:6], f"{r.value:.10g}") for r in rows(now))
        self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._close:
            self._stream.close()


class ParquetWriter:
    """Rows as Parquet. The file takes its name when it is whole, at the end; Ctrl-C is an end."""

    GROUP_ROWS = 50_000

    def __init__(self, path: Path) -> None:
        """Raises MissingDependencyError without pyarrow."""
        self._pyarrow = require("pyarrow", why="write Parquet (--csv needs nothing)")
        self._parquet = require("pyarrow.parquet", why="write Parquet (--csv needs nothing)")
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        texts = ("part", "name", "quantity", "unit")
        kinds = [(n, self._pyarrow.string() if n in texts else self._pyarrow.float64()) for n in Row._fields]
        self._schema = self._pyarrow.schema(kinds)
        self._pending: list[Row] = []
        self._file: Any = None

    def __enter__(self) -> ParquetWriter:
        with storage(self.path):
            self._file = self._parquet.ParquetWriter(self._partial, self._schema)
        return self

    def write(self, now: Snapshot) -> None:
        """Add one reading."""
        self._pending += rows(now)
        if len(self._pending) >= self.GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = [list(c) for c in zip(*self._pending)] or [[] for _ in Row._fields]
        with storage(self.path):
            self._file.write_table(self._pyarrow.table(dict(zip(Row._fields, columns)), schema=self._schema))
        self._pending = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._flush()
            self._file.close()
            with storage(self.path):
                self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def open_csv(path: Path, *, force: bool) -> CsvWriter:
    """A CSV file at `path`. Raises UsageError if it exists (without `force`), StorageError if it cannot be made."""
    check_output(path, force=force)
    with storage(path):
        return CsvWriter(path.open("w", encoding="utf-8", newline=""), close=True)


def check_output(path: Path, *, force: bool) -> None:
    """Raises UsageError if `path` exists and is not to be replaced, or its folder does not exist."""
    if path.exists() and not force:
        raise UsageError(f"'{path}' exists. Choose another name, or replace it with --force.")
    if not path.parent.is_dir():
        raise UsageError(f"Folder '{path.parent}' does not exist. Make it first.")
