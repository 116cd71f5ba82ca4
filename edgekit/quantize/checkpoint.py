"""What calibration has measured already, kept between runs: an interrupted `quantize` goes on where it was.

Addressed by content: the key is a digest of the model with its weights, the data and the tensor, so that nothing
measured on something else can ever be read. The files lie in `$EDGEKIT_CACHE`, else in `edgekit/` of the user's cache
folder; deleting them costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit._files import write_atomic
from edgekit.graphs import EXTERNAL_BYTES, weight_bytes
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.ranges import Histogram

if TYPE_CHECKING:
    import onnx

KEPT_FILES = 64
"""Calibrations kept; the oldest go first."""


def cache_folder() -> Path:
    """Where measured calibrations lie."""
    given = os.environ.get("EDGEKIT_CACHE")
    if given:
        return Path(given) / "calibration"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit" / "calibration"


class Checkpoint:
    """The histograms of one model on one set of data; without a place to write it is always empty."""

    def __init__(self, model: onnx.ModelProto, data: CalibrationData) -> None:
        self._path: Path | None = None
        if weight_bytes(model) < EXTERNAL_BYTES:
            digest = hashlib.sha256(model.SerializeToString(deterministic=True))
            digest.update(data.digest.encode())
            self._path = cache_folder() / f"{digest.hexdigest()}.npz"

    def load(self, tensors: Sequence[str]) -> dict[str, Histogram]:
        """Those of `tensors` that were measured already. A damaged file counts as nothing measured."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                names = [str(n) for n in file["names"]]
                ends, counts = file["ends"], file["counts"]
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
        wanted = set(tensors)
        return {
            name: Histogram(float(ends[i, 0]), float(ends[i, 1]), counts[i])
            for i, name in enumerate(names)
            if name in wanted
        }

    def save(self, found: Mapping[str, Histogram]) -> None:
        """Keep `found` for another run. A cache that cannot be written is no error."""
        if self._path is None or not found:
            return
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            names=np.array(list(found)),
            ends=np.array([(h.low, h.high) for h in found.values()], np.float64),
            counts=np.stack([h.counts for h in found.values()]),
        )
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, buffer.getvalue())
            files = sorted(self._path.parent.glob("*.npz"), key=lambda p: p.stat().st_mtime)
            for old in files[:-KEPT_FILES]:
                old.unlink(missing_ok=True)
