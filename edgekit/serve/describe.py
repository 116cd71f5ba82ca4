"""Models in the words of the protocol: metadata and Triton's model configuration."""

from __future__ import annotations

from typing import Any

from edgekit.serve.model import Model
from edgekit.tensors import TensorSpec, dtype_of


def metadata_of(model: Model, versions: list[str]) -> dict[str, Any]:
    """Inputs and outputs; a free dimension is -1."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": model.platform,
        "inputs": [_metadata(s) for s in model.inputs],
        "outputs": [_metadata(s) for s in model.outputs],
    }


def config_of(model: Model) -> dict[str, Any]:
    """The model in the words of a Triton model configuration.

    `max_batch_size` is 0, as for every model whose shapes are complete: the first dimension is in `dims`.
    """
    worker, options = model.worker, model.options
    parameters = {"variant": model.session.variant, "device": model.session.device}
    config: dict[str, Any] = {
        "name": model.name,
        "platform": model.platform,
        "backend": model.platform.partition("_")[0],
        "version_policy": _policy(options.versions),
        "max_batch_size": 0,
        "input": [{**_config(s), "optional": s.name in model.defaults} for s in model.inputs],
        "output": [_config(s) for s in model.outputs],
        "instance_group": [{"count": worker.instances, "kind": "KIND_CPU" if model.on_cpu else "KIND_GPU"}],
    }
    if worker.max_rows > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": list(options.preferred_batch) or [worker.max_rows],
            "max_queue_delay_microseconds": round(options.queue_delay_ms * 1e3),
            "priority_levels": options.priorities,
            "default_priority_level": options.default_priority,
        }
        parameters["max_rows"] = str(worker.max_rows)
    if model.states:
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": round(options.sequence_idle_s * 1e6),
            "state": [{"input_name": name, "output_name": source} for name, source in model.states.items()],
        }
    if model.cache is not None:
        config["response_cache"] = {"enable": True}
    if model.labels and config["output"]:
        config["output"][0]["label_filename"] = "labels.txt"
    config["parameters"] = {name: {"string_value": value} for name, value in parameters.items()}
    return config


def _policy(versions: str | int | tuple[str, ...]) -> dict[str, Any]:
    if versions == "all":
        return {"all": {}}
    if isinstance(versions, tuple):
        return {"specific": {"versions": list(versions)}}
    return {"latest": {"num_versions": versions if isinstance(versions, int) else 1}}


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": dtype_of(spec.dtype).oip, "shape": _dims(spec)}


def _config(spec: TensorSpec) -> dict[str, Any]:
    oip = dtype_of(spec.dtype).oip
    return {"name": spec.name, "data_type": "TYPE_STRING" if oip == "BYTES" else f"TYPE_{oip}", "dims": _dims(spec)}


def _dims(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]
