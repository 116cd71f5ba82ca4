"""Models in the words of the protocol."""

from __future__ import annotations

import numpy as np

from edgekit.runtime.fake import FakeSession
from edgekit.serve.describe import config_of, metadata_of
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions
from edgekit.tensors import TensorSpec

INPUTS = [
    TensorSpec("x", "float32", ("n", 2)),
    TensorSpec("state", "float16", ("n", 4)),
    TensorSpec("scale", "int8", ()),
]
OUTPUTS = [TensorSpec("y", "string", ("n",)), TensorSpec("new", "float16", ("n", 4))]


def model(**options: object) -> Model:
    return Model(
        FakeSession(INPUTS, OUTPUTS, lambda feed: {}),
        name="net",
        version="7",
        states={"state": "new"},
        defaults={"scale": np.array(2, np.int8)},
        labels=("a", "b"),
        options=ModelOptions(**options),  # type: ignore[arg-type]
    )


def test_metadata() -> None:
    assert metadata_of(model(), ["6", "7"]) == {
        "name": "net",
        "versions": ["6", "7"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "state", "datatype": "FP16", "shape": [-1, 4]},
            {"name": "scale", "datatype": "INT8", "shape": []},
        ],
        "outputs": [
            {"name": "y", "datatype": "BYTES", "shape": [-1]},
            {"name": "new", "datatype": "FP16", "shape": [-1, 4]},
        ],
    }


def test_configuration_says_how_it_is_scheduled() -> None:
    config = config_of(model(max_batch=8, queue_delay_ms=1.5, instances=2, cache_mib=1.0, versions=("6", "7")))
    assert config["max_batch_size"] == 0
    assert [(i["name"], i["data_type"], i["optional"]) for i in config["input"]] == [
        ("x", "TYPE_FP32", False),
        ("state", "TYPE_FP16", False),
        ("scale", "TYPE_INT8", True),
    ]
    assert config["output"][0] == {
        "name": "y",
        "data_type": "TYPE_STRING",
        "dims": [-1],
        "label_filename": "labels.txt",
    }
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [8],
        "max_queue_delay_microseconds": 1500,
        "priority_levels": 3,
        "default_priority_level": 2,
    }
    assert config["sequence_batching"] == {
        "max_sequence_idle_microseconds": 60_000_000,
        "state": [{"input_name": "state", "output_name": "new"}],
    }
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["version_policy"] == {"specific": {"versions": ["6", "7"]}}
    assert config["response_cache"] == {"enable": True}
    assert config["parameters"]["variant"] == {"string_value": "fake"}


def test_what_is_not_used_is_not_said() -> None:
    config = config_of(model(max_batch=1, states={}, versions="all"))
    assert {"dynamic_batching", "sequence_batching", "response_cache"} & set(config) == set()
    assert config["version_policy"] == {"all": {}}
    assert config_of(model(versions=3))["version_policy"] == {"latest": {"num_versions": 3}}
