"""What a package says of itself: the typed content of manifest.json, and its reading and writing."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from edgekit.errors import IntegrityError, PackageError
from edgekit.preprocess import Preprocess
from edgekit.tensors import TensorSpec

SCHEMA = 1
"""The manifest schema that this edgekit writes; older ones are read, newer ones refused."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Tensor(_Record, frozen=True, kw_only=True):
    """An input or output: a dimension is a size or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> Tensor:
        """The record of a TensorSpec."""
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.shape)

    @property
    def spec(self) -> TensorSpec:
        """The tensor as the rest of edgekit sees it."""
        return TensorSpec(self.name, self.dtype, self.shape)


class File(_Record, frozen=True, kw_only=True):
    """A file of the package, by its path inside it."""

    name: str
    sha256: str
    bytes: int


class Accuracy(_Record, frozen=True, kw_only=True):
    """A variant measured against the reference.

    `agreement` is the share of samples whose top-1 class is the reference's; `metrics` are the recipe's own, on
    `metric_samples` samples. None means not measured.
    """

    samples: int
    max_abs: float
    cosine: float
    agreement: float | None = None
    metrics: dict[str, float] = {}
    metric_samples: int | None = None


class Variant(_Record, frozen=True, kw_only=True):
    """One runnable form of the model.

    Attributes:
        id: unique in the package ("fp32", "int8", "fp16-sm87-trt10.16").
        precision: "fp32", "fp16", "bf16", "int8", "int8-trt", ...
        format: "onnx" or "tensorrt" or "tensorrt-rtx".
        target: "any", or the one target an engine was compiled for ("sm87-trt10.16").
        file, sha256, bytes: the model file; `bytes` counts external data too.
        data: external data files that belong to `file`.
        plugins: custom operators inside, as "domain::name".
        accuracy: measured accuracy, or None.
        settings: how it was made (method, calibration digest, layers left in float, ...).
    """

    id: str
    precision: str
    format: str
    target: str
    file: str
    sha256: str
    bytes: int
    data: tuple[File, ...] = ()
    plugins: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    settings: dict[str, Any] = {}


class Parity(_Record, frozen=True, kw_only=True):
    """Largest difference between PyTorch and ONNX at one batch size. `max_rel` is relative to the largest output."""

    batch: int
    max_abs: float
    max_rel: float


class Provenance(_Record, frozen=True, kw_only=True):
    """Where the reference came from."""

    tool: str
    source: str
    source_sha256: str
    framework: str
    opset: int
    created: str
    parity: tuple[Parity, ...] = ()
    notes: tuple[str, ...] = ()


class SampleSet(_Record, frozen=True, kw_only=True):
    """samples.npz: how many rows and what they are: "recipe", "file", or "synthetic" (random: never calibrated on)."""

    count: int
    source: str


class Stage(_Record, frozen=True, kw_only=True):
    """One model of a package that runs several, one after the other; itself a whole package inside this one.

    Tensors flow by name: the inputs of the package and the outputs of each stage are set down, later stages take them
    up.

    Attributes:
        name: unique in the package ("decoder").
        package: its folder ("decoder.edge").
        reference: SHA-256 of its reference model: its variants may change, the model may not.
        inputs: input of the stage -> the tensor that it takes.
        outputs: output of the stage -> the tensor that it sets down.
    """

    name: str
    package: str
    reference: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class Manifest(_Record, frozen=True, kw_only=True):
    """The whole of manifest.json. `digest` seals the rest: see `encode`.

    A package of stages has no variants of its own: each stage has its own. `stages` is absent from the others.
    """

    schema: int
    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    variants: tuple[Variant, ...]
    provenance: Provenance
    digest: str = ""
    task: str = ""
    description: str = ""
    license: str = ""
    preprocess: dict[str, Preprocess] = {}
    states: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    tolerance: dict[str, float] = {}
    higher_is_better: bool = True
    samples: SampleSet | None = None
    files: tuple[File, ...] = ()
    stages: tuple[Stage, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as TensorSpecs."""
        return tuple(t.spec for t in self.inputs)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs as TensorSpecs."""
        return tuple(t.spec for t in self.outputs)

    def all_files(self) -> dict[str, File]:
        """Every file that the manifest vouches for, by name; external data apart from its model file."""
        out = {f.name: f for f in self.files}
        for v in self.variants:
            own = v.bytes - sum(d.bytes for d in v.data)
            out[v.file] = File(name=v.file, sha256=v.sha256, bytes=own)
            out.update((d.name, d) for d in v.data)
        return out


def encode(manifest: Manifest) -> bytes:
    """manifest.json: indented JSON whose `digest` is the SHA-256 of the same text with an empty digest."""

    def text(m: Manifest) -> bytes:
        return msgspec.json.format(msgspec.json.encode(m), indent=2) + b"\n"

    digest = hashlib.sha256(text(msgspec.structs.replace(manifest, digest=""))).hexdigest()
    return text(msgspec.structs.replace(manifest, digest=digest))


def decode(data: bytes, *, where: str) -> Manifest:
    """The manifest in `data`.

    Raises:
        PackageError: not JSON, not a manifest, or of a newer schema; `where` is used in the message.
        IntegrityError: the text is not what edgekit wrote.
    """
    try:
        head = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise PackageError(
            f"manifest.json of '{where}' is not valid JSON ({error}). Restore it, or export again."
        ) from error
    schema = head.get("schema") if isinstance(head, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise PackageError(f"manifest.json of '{where}' has no schema number; is this an edgekit package?")
    if schema > SCHEMA:
        raise PackageError(
            f"'{where}' has manifest schema {schema}, this edgekit reads up to {SCHEMA}. Upgrade edgekit to open it."
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise PackageError(
            f"manifest.json of '{where}' does not fit schema {schema}: {error}. Restore it, or export again."
        ) from error
    if encode(manifest) != data:
        raise IntegrityError(
            f"manifest.json of '{where}' was changed since edgekit wrote it (its digest does not match). "
            "Restore it, or export again."
        )
    return manifest
