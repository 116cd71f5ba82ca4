"""What the server can do, whichever door asks: it knows models and tensors, and nothing of HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import edgekit
from edgekit.errors import InputError
from edgekit.serve.classify import top_classes
from edgekit.serve.messages import InferRequest, InferResponse, OutputTensor, RequestError
from edgekit.serve.repository import Model, Repository
from edgekit.serve.wire import float32_from_bfloat16
from edgekit.serve.worker import Outcome, Post
from edgekit.tensors import TensorSpec, dtype_of

LOGGER = logging.getLogger(__name__)

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")

Answer: TypeAlias = Callable[[InferResponse | Exception], None]
"""Called once with what became of an inference: an error is InputError, RequestError, or what the runtime raised."""


class App:
    """The served models and the questions they answer. All methods are for the server's own thread."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.ready = True

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and protocol extensions."""
        return {"name": "edgekit", "version": edgekit.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs; a free dimension is -1. Raises RequestError 404."""
        model = self.repository.find(name, version)
        return {
            "name": model.name,
            "versions": [model.version],
            "platform": model.platform,
            "inputs": [_metadata(s) for s in model.inputs],
            "outputs": [_metadata(s) for s in model.outputs],
        }

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The model in the words of a Triton model configuration. Raises RequestError 404.

        `max_batch_size` is 0, as for every model whose shapes are complete: the first dimension is in `dims`.
        """
        model = self.repository.find(name, version)
        config: dict[str, Any] = {
            "name": model.name,
            "platform": model.platform,
            "backend": model.platform.partition("_")[0],
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [{**_config(s), "optional": s.name in model.defaults} for s in model.inputs],
            "output": [_config(s) for s in model.outputs],
            "parameters": {
                "variant": {"string_value": model.session.variant},
                "device": {"string_value": model.session.device},
            },
        }
        if model.labels and config["output"]:
            config["output"][0]["label_filename"] = "labels.txt"
        return config

    def repository_index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Every model with its state; all that are here are ready, so `ready_only` changes nothing."""
        return [
            {"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in self.repository.models()
        ]

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Counters of one model, or of all. Raises RequestError 404."""
        models = (self.repository.find(name, version),) if name else self.repository.models()
        return {"model_stats": [m.stats.document(m.name, m.version) for m in models]}

    def infer(self, model: Model, request: InferRequest, answer: Answer, post: Post, started_ns: int) -> None:
        """Run `request` and call `answer`: before returning for a small model, else later through `post`.

        `started_ns` is when the request arrived, by `time.perf_counter_ns`.
        """

        def done(outcome: Outcome) -> None:
            if outcome.error is not None:
                failed(outcome.error)
                return
            try:
                response = _response(model, request, outcome)
            except Exception as error:
                failed(error)
                return
            rows = _rows(model, request)
            now = time.perf_counter_ns()
            model.stats.succeeded(
                rows=rows, total_ns=now - started_ns, queue_ns=outcome.queue_ns, run_ns=outcome.run_ns
            )
            answer(response)

        def failed(error: Exception) -> None:
            model.stats.failed(time.perf_counter_ns() - started_ns)
            answer(error)

        try:
            _prepare(model, request)
            model.worker.submit(request.feed, done, post)
        except (InputError, RequestError) as error:
            failed(error)

    def close(self) -> None:
        """Release every model."""
        self.ready = False
        self.repository.close()


def _prepare(model: Model, request: InferRequest) -> None:
    for name, value in model.defaults.items():
        request.feed.setdefault(name, value)
    for wanted in request.outputs:
        if wanted.name not in model.output_specs:
            known = ", ".join(model.output_specs)
            raise InputError(f"Output '{wanted.name}' is not an output of '{model.name}'; it has {known}.")
    if model.states and request.parameters.get("sequence_id"):
        raise InputError(
            f"Model '{model.name}' is served without sequences: send its state inputs "
            f"({', '.join(model.states)}) with each request instead of a sequence_id."
        )


def _response(model: Model, request: InferRequest, outcome: Outcome) -> InferResponse:
    outputs = []
    if not request.outputs:
        for name, value in outcome.outputs.items():
            outputs.append(OutputTensor(name, model.datatypes[name], value, request.binary))
    for wanted in request.outputs:
        value = outcome.outputs[wanted.name]
        datatype = model.datatypes[wanted.name]
        if wanted.classes:
            spec = model.output_specs[wanted.name]
            scores = float32_from_bfloat16(value) if datatype == "BF16" else value
            value = top_classes(wanted.name, scores, classes=wanted.classes, labels=model.labels, batched=spec.batched)
            datatype = "BYTES"
        outputs.append(OutputTensor(wanted.name, datatype, value, wanted.binary))
    return InferResponse(model.name, model.version, tuple(outputs), request.id)


def _rows(model: Model, request: InferRequest) -> int:
    first = model.inputs[0] if model.inputs else None
    return len(request.feed[first.name]) if first is not None and first.batched else 1


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": dtype_of(spec.dtype).oip, "shape": _dims(spec)}


def _config(spec: TensorSpec) -> dict[str, Any]:
    oip = dtype_of(spec.dtype).oip
    return {"name": spec.name, "data_type": "TYPE_STRING" if oip == "BYTES" else f"TYPE_{oip}", "dims": _dims(spec)}


def _dims(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]
