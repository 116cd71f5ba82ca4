from __future__ import annotations

import pytest

from edgekit.errors import BackendError, MissingDependencyError, UsageError
from edgekit.runtime.devices import CPU, Place
from edgekit.runtime.ort_providers import check_started, providers_for, run_error

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
GPU = Place("cuda", 1)


def test_the_cpu_needs_nothing_else() -> None:
    assert providers_for(CPU, CUDA) == [("CPUExecutionProvider", {})]


def test_cuda_comes_with_its_device_and_the_cpu_behind_it() -> None:
    assert providers_for(GPU, CUDA) == [("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]


def test_stream_and_graphs_are_told_as_text() -> None:
    (name, options), _ = providers_for(GPU, CUDA, stream=140_000, graphs=True)
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": "1", "user_compute_stream": "140000", "enable_cuda_graph": "1"}


def test_tensorrt_records_the_graph_and_cuda_does_not() -> None:
    chain = providers_for(GPU, ("TensorrtExecutionProvider", *CUDA), tensorrt=True, graphs=True, stream=7)
    assert [name for name, _ in chain] == ["TensorrtExecutionProvider", *CUDA]
    assert chain[0][1] == {"device_id": "1", "user_compute_stream": "7", "trt_cuda_graph_enable": "1"}
    assert "enable_cuda_graph" not in chain[1][1]


@pytest.mark.parametrize(
    ("options", "name"), [({"tensorrt": True}, "tensorrt="), ({"stream": 1}, "stream="), ({"graphs": True}, "graphs=")]
)
def test_what_a_cpu_lacks_is_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} needs a GPU"):
        providers_for(CPU, CUDA, **options)  # type: ignore[arg-type]


def test_a_wheel_without_the_provider_names_the_one_that_has_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip uninstall onnxruntime; pip install 'edgekit\[gpu\]'"):
        providers_for(GPU, ("AzureExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(MissingDependencyError, match="TensorrtExecutionProvider"):
        providers_for(GPU, CUDA, tensorrt=True)


def test_a_provider_that_did_not_start_is_an_error_and_no_silent_cpu() -> None:
    wanted = providers_for(GPU, CUDA)
    check_started(wanted, CUDA, GPU)
    with pytest.raises(BackendError, match=r"could not start CUDAExecutionProvider on cuda:1: its CUDA and cuDNN"):
        check_started(wanted, ("CPUExecutionProvider",), GPU)


def test_running_out_of_memory_says_what_helps() -> None:
    text = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=1"
    assert "smaller batches" in str(run_error("fp16", GPU, text))
    assert str(run_error("fp16", CPU, "bad node")) == "ONNX Runtime failed while running 'fp16': bad node"
