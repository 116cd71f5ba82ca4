"""`export`: the whole way from a source to a checked package."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit import __version__
from edgekit._lazy import require
from edgekit.errors import UsageError
from edgekit.export import onnx_import, parity, torch_to_onnx
from edgekit.export.cleanup import clean
from edgekit.export.fold import fold_batchnorm
from edgekit.export.samples import Draw, affordable_rows, draw
from edgekit.export.source import Source, built, read_source
from edgekit.export.torch_runner import TorchRunner
from edgekit.graphs import check_model, infer_shapes, model_specs, opset_of, precision_of, save_model, unknown_operators
from edgekit.manifest import SCHEMA, Manifest, Provenance, SampleSet, Tensor
from edgekit.package import LABELS, Package, PackageWriter, create, sha256_of
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec, Runner, check_name
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import TensorSpec, run_in_batches

if TYPE_CHECKING:
    import onnx

METRIC_SAMPLES = 2000
