"""Which execution providers ONNX Runtime is asked for, and whether it gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.errors import BackendError, MissingDependencyError, UsageError
from edgekit.runtime.devices import Place

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"


def providers_for(
    place: Place,
    available: Sequence[str],
    *,
    tensorrt: bool = False,
    stream: int | None = None,
    graphs: bool = False,
) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, best first, for a session at `place`; `available` are those of the installed wheel.

    `stream` is a CUDA stream's address that all work of the session is put on; `graphs` records the kernels of a shape
    once and launches them as one. The precision stays what the graph says: TensorRT is not told to lower it.

    Raises:
        UsageError: an option that only a GPU has, for the CPU.
        MissingDependencyError: the installed wheel lacks the provider; the message names the wheel that has it.
    """
    if place.kind == "cpu":
        for name, asked in (("tensorrt", tensorrt), ("stream", stream is not None), ("graphs", graphs)):
            if asked:
                raise UsageError(f"{name}= needs a GPU, but device is cpu. Give device='cuda:0', or leave it out.")
        return [(CPU_PROVIDER, {})]
    wanted = TENSORRT_PROVIDER if tensorrt else CUDA_PROVIDER
    if wanted not in available:
        raise MissingDependencyError(
            f"Device {place} needs ONNX Runtime with {wanted}, and the one installed has "
            f"{', '.join(available)}. Run: pip uninstall onnxruntime; pip install 'edgekit[gpu]' "
            "(on a Jetson: NVIDIA's onnxruntime-gpu wheel for its JetPack)"
        )
    common = {"device_id": str(place.index)}
    if stream is not None:
        common["user_compute_stream"] = str(stream)
    cuda = (CUDA_PROVIDER, {**common, **({"enable_cuda_graph": "1"} if graphs and not tensorrt else {})})
    chain = [cuda, (CPU_PROVIDER, {})] if CUDA_PROVIDER in available else [(CPU_PROVIDER, {})]
    if tensorrt:
        chain.insert(0, (TENSORRT_PROVIDER, {**common, **({"trt_cuda_graph_enable": "1"} if graphs else {})}))
    return chain


def check_started(wanted: Sequence[tuple[str, dict[str, str]]], active: Sequence[str], place: Place) -> None:
    """Raise BackendError if the first provider that was asked for is not at work: ONNX Runtime itself goes on without.

    It happens when CUDA, cuDNN or TensorRT libraries are missing or of another release.
    """
    first = wanted[0][0]
    if first in active:
        return
    libraries = "TensorRT and CUDA libraries" if first == TENSORRT_PROVIDER else "CUDA and cuDNN libraries"
    raise BackendError(
        f"ONNX Runtime could not start {first} on {place}: its {libraries} are missing or of another release. "
        "Run: pip install 'onnxruntime-gpu[cuda,cudnn]', and see: edgekit doctor"
    )


def preload_libraries(ort: Any) -> None:
    """Let ONNX Runtime (1.21+) find CUDA and cuDNN in NVIDIA's wheels; where they are absent it says so on starting."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def run_error(variant: str, place: Place, text: str) -> BackendError:
    """The error of a failed run, with the fix for what GPUs fail with most."""
    low = text.lower()
    if place.kind == "cuda" and any(w in low for w in ("out of memory", "failed to allocate memory", "cuda failure 2")):
        return BackendError(
            f"{place} is out of memory while running '{variant}'. Send smaller batches, stop other programs on the "
            "GPU, or run on the CPU."
        )
    return BackendError(f"ONNX Runtime failed while running '{variant}': {text}")
