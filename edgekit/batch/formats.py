"""Tables of results on disk: Parquet in row groups, CSV, or a JSON document a line; written in parts, then as one.

A part is what is kept when a run is interrupted. Joining the parts streams: no more than a row group is in memory.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit._lazy import require
from edgekit.batch.columns import Column, Rows
from edgekit.errors import UsageError
from edgekit.tensors import Array, numpy_dtype

GROUP_ROWS = 1 << 16
GROUP_BYTES = 64 << 20
"""A row group of the final Parquet file ends at so many rows, or bytes in memory."""


class Format(ABC):
    """How tables of `columns` are written."""

    suffix: str

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)

    @abstractmethod
    def part(self, rows: Iterable[Rows]) -> bytes:
        """`rows` as a part."""

    @abstractmethod
    def join(self, parts: Iterable[Path], output: Path, about: Mapping[str, Any]) -> None:
        """Write `parts` in order as one file, with `about` where the format has a place for it. Raises OSError."""


def format_for(output: Path, columns: Sequence[Column]) -> Format:
    """The format that a file's name asks for.

    Raises:
        UsageError: none.
        MissingDependencyError: it is Parquet, and pyarrow is not installed.
    """
    for kind in (Parquet, Csv, JsonLines):
        if output.suffix.lower() == kind.suffix:
            return kind(columns)
    raise UsageError(f"'{output.name}' is no table that batch writes; expected NAME.parquet, NAME.csv or NAME.jsonl.")


class _Text(Format):
    """What CSV and JSON lines share: parts are text, and joining them is copying."""

    @abstractmethod
    def _head(self) -> bytes:
        """What the file begins with."""

    def join(self, parts: Iterable[Path], output: Path, about: Mapping[str, Any]) -> None:
        """See `Format.join`; text has no place for `about`."""
        with output.open("wb") as out:
            out.write(self._head())
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)


class Csv(_Text):
    """One line a row, with a header; a tensor is its JSON in one cell."""

    suffix = ".csv"

    def _head(self) -> bytes:
        names = ["path", "row", *(c.name for c in self._columns), "error"]
        return _csv_lines([names])

    def part(self, rows: Iterable[Rows]) -> bytes:
        """See `Format.part`."""
        return b"".join(_csv_lines(self._lines(r)) for r in rows)

    def _lines(self, rows: Rows) -> Iterable[list[object]]:
        cells = [self._cells(c, rows) for c in self._columns]
        for i, (name, index) in enumerate(zip(rows.names, rows.index)):
            yield [name, index, *(c[i] for c in cells), rows.error]

    def _cells(self, column: Column, rows: Rows) -> Sequence[object]:
        values = rows.values.get(column.name)
        if values is None:
            return [""] * len(rows.names)
        if values.ndim > 1:
            return [msgspec.json.encode(v.tolist()).decode() for v in values]
        return ["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in values.tolist()]


def _csv_lines(lines: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


class JsonLines(_Text):
    """One JSON object a row; tensors are nested lists, and values that are not finite are null."""

    suffix = ".jsonl"

    def _head(self) -> bytes:
        return b""

    def part(self, rows: Iterable[Rows]) -> bytes:
        """See `Format.part`."""
        encode = msgspec.json.Encoder().encode
        lines: list[bytes] = []
        for some in rows:
            lists = {c.name: some.values[c.name].tolist() for c in self._columns if c.name in some.values}
            for i, (name, index) in enumerate(zip(some.names, some.index)):
                own = {c.name: lists[c.name][i] if c.name in lists else None for c in self._columns}
                lines.append(encode({"path": name, "row": index, **own, "error": some.error or None}) + b"\n")
        return b"".join(lines)


class Parquet(Format):
    """Columns in row groups. A tensor of a fixed shape is Arrow's fixed_shape_tensor, which readers that do not know it
    take as a list; one with free sizes is a list of its elements beside a column NAME_shape."""

    suffix = ".parquet"

    def __init__(self, columns: Sequence[Column]) -> None:
        """Raises MissingDependencyError without pyarrow."""
        super().__init__(columns)
        self._arrow = require("pyarrow", why="write Parquet (a name that ends with .csv or .jsonl needs nothing)")
        self._parquet = require("pyarrow.parquet", why="write Parquet")
        fields = [("path", self._arrow.string()), ("row", self._arrow.int32())]
        for column in self._columns:
            fields.append((column.name, self._type(column)))
            if _free(column):
                fields.append((f"{column.name}_shape", self._arrow.list_(self._arrow.int32())))
        self._schema = self._arrow.schema([*fields, ("error", self._arrow.string())])

    def part(self, rows: Iterable[Rows]) -> bytes:
        """See `Format.part`."""
        sink = self._arrow.BufferOutputStream()
        with self._parquet.ParquetWriter(sink, self._schema, compression="lz4") as writer:
            batches = [self._record_batch(r) for r in rows]
            writer.write_table(self._arrow.Table.from_batches(batches, self._schema))
        return bytes(sink.getvalue())

    def join(self, parts: Iterable[Path], output: Path, about: Mapping[str, Any]) -> None:
        """See `Format.join`: small parts share a row group, `about` is in the file's metadata under "edgekit"."""
        schema = self._schema.with_metadata({"edgekit": msgspec.json.encode(about)})
        with self._parquet.ParquetWriter(output, schema, compression="zstd") as writer:
            tables: list[Any] = []
            for part in parts:
                tables.append(self._parquet.read_table(part, memory_map=False))
                if sum(t.num_rows for t in tables) >= GROUP_ROWS or sum(t.nbytes for t in tables) >= GROUP_BYTES:
                    self._write(writer, tables, schema)
                    tables = []
            if tables:
                self._write(writer, tables, schema)

    def _write(self, writer: Any, tables: list[Any], schema: Any) -> None:
        whole = self._arrow.concat_tables(tables).cast(schema)
        writer.write_table(whole, row_group_size=max(1, whole.num_rows))

    def _type(self, column: Column) -> Any:
        arrow = self._arrow
        value = arrow.string() if column.dtype == "string" else arrow.from_numpy_dtype(numpy_dtype(column.dtype))
        if not column.shape:
            return value
        sizes = [d for d in column.shape if d is not None]
        if _free(column) or column.dtype in ("string", "bool") or not all(sizes):
            return arrow.list_(value)
        return arrow.fixed_shape_tensor(value, sizes)

    def _record_batch(self, rows: Rows) -> Any:
        arrow, count = self._arrow, len(rows.names)
        arrays = [arrow.array(list(rows.names), arrow.string()), arrow.array(np.asarray(rows.index, np.int32))]
        for column in self._columns:
            values = rows.values.get(column.name)
            kind = self._schema.field(column.name).type
            arrays.append(arrow.nulls(count, kind) if values is None else self._array(values, kind))
            if _free(column):
                shape = None if values is None else list(values.shape[1:])
                arrays.append(arrow.array([shape] * count, arrow.list_(arrow.int32())))
        arrays.append(arrow.array([rows.error or None] * count, arrow.string()))
        return arrow.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _array(self, values: Array, kind: Any) -> Any:
        arrow = self._arrow
        if values.ndim == 1 and not arrow.types.is_list(kind):
            return arrow.array(values.tolist() if values.dtype == object else values, kind)
        flat = np.ascontiguousarray(values).reshape(-1)
        if not arrow.types.is_list(kind):
            storage = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), kind.storage_type.list_size)
            return arrow.ExtensionArray.from_storage(kind, storage)
        offsets = np.arange(len(values) + 1, dtype=np.int32) * math.prod(values.shape[1:])
        elements = arrow.array(flat.tolist() if flat.dtype == object else flat, kind.value_type)
        return arrow.ListArray.from_arrays(arrow.array(offsets), elements)


def _free(column: Column) -> bool:
    """Whether rows may have values of different shapes."""
    return None in column.shape
