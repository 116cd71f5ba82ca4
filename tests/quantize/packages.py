"""Packages made straight from ONNX models, so that these tests need no exporter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekit.graphs import model_specs
from edgekit.manifest import Manifest, Provenance, SampleSet, Tensor
from edgekit.package import Package, create
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import run_in_batches


def package_of(
    path: Path,
    model: onnx.ModelProto,
    samples: Mapping[str, np.ndarray] | None = None,
    *,
    source: str = "file",
    **fields: Any,
) -> Package:
    """A package at `path` with `model` as its fp32 variant and `samples` with the model's own outputs."""
    inputs, outputs = model_specs(model)
    data = model.SerializeToString()
    info = None
    with create(path) as writer:
        writer.path("fp32.onnx").write_bytes(data)
        writer.put(writer.variant_of("fp32.onnx", id="fp32", precision="fp32", format="onnx", target="any"))
        if samples is not None:
            with OrtSession(data) as session:
                results = run_in_batches(session.run, samples, inputs=session.inputs, outputs=session.outputs)
            writer.write_samples(samples, results)
            info = SampleSet(count=len(samples[inputs[0].name]), source=source)
        provenance = Provenance(
            tool="tests", source="model.onnx", source_sha256="", framework="", opset=17, created="2026-01-01T00:00:00Z"
        )
        values = {
            "schema": 1,
            "name": path.stem,
            "version": "1",
            "inputs": tuple(Tensor.of(s) for s in inputs),
            "outputs": tuple(Tensor.of(s) for s in outputs),
            "variants": (),
            "provenance": provenance,
            "samples": info,
        }
        return writer.commit(Manifest(**{**values, **fields}))
