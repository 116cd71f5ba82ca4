"""calibration.json: the ranges of a package's INT8 variants, addressed by what they were measured on."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from edgekit.errors import PackageError
from edgekit.package import CALIBRATION, Package
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.scheme import Scheme

SCHEMA = 1


class TensorRange(msgspec.Struct, frozen=True, kw_only=True):
    """The interval of one tensor: asymmetric for ONNX Runtime, a symmetric peak for TensorRT."""

    low: float
    high: float
    peak: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of calibration.json. Digests are SHA-256 in hex.

    `weights_sha256` is of the reference's file, `data_sha256` of the rows, `preprocess_sha256` of how files become
    rows. `steps` were taken from plain ranges to the result; `ranges` are those of the result.
    """

    schema: int
    weights_sha256: str
    data_sha256: str
    preprocess_sha256: str
    source: str
    samples: int
    method: str
    steps: tuple[str, ...]
    float_layers: tuple[str, ...]
    ranges: dict[str, TensorRange]


def preprocess_digest(preprocess: Any) -> str:
    """SHA-256 of declared preprocessing."""
    return hashlib.sha256(msgspec.json.encode(preprocess)).hexdigest()


def calibration_of(package: Package, data: CalibrationData, scheme: Scheme) -> Calibration:
    """What `scheme` was calibrated on and to."""
    symmetric = scheme.symmetric_ranges
    return Calibration(
        schema=SCHEMA,
        weights_sha256=package.reference.sha256,
        data_sha256=data.digest,
        preprocess_sha256=preprocess_digest(package.manifest.preprocess),
        source=data.source,
        samples=data.count,
        method=scheme.method,
        steps=scheme.steps,
        float_layers=tuple(sorted(scheme.floats)),
        ranges={
            name: TensorRange(low=float(r.low), high=float(r.high), peak=float(symmetric[name].peak))
            for name, r in scheme.ranges.items()
        },
    )


def encoded(calibration: Calibration) -> bytes:
    """calibration.json."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"


def stored(package: Package) -> Calibration | None:
    """The package's calibration, or None. Raises PackageError if it cannot be read."""
    if CALIBRATION not in package.manifest.all_files():
        return None
    try:
        return msgspec.json.decode(package.file(CALIBRATION).read_bytes(), type=Calibration)
    except msgspec.DecodeError as error:
        raise PackageError(
            f"{CALIBRATION} of '{package.path.name}' cannot be read ({error}). Calibrate again with --force."
        ) from error


def stale_parts(calibration: Calibration, package: Package, data: CalibrationData | None) -> list[str]:
    """What changed since `calibration` was made: of "weights", "preprocessing" and "data" (if `data` is given)."""
    out = []
    if calibration.weights_sha256 != package.reference.sha256:
        out.append("weights")
    if calibration.preprocess_sha256 != preprocess_digest(package.manifest.preprocess):
        out.append("preprocessing")
    if data is not None and calibration.data_sha256 != data.digest:
        out.append("data")
    return out
