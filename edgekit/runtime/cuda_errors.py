"""What the CUDA driver answers, as errors with the next step."""

from __future__ import annotations

from typing import Any

from edgekit.errors import BackendError

_RESTART = "The GPU's state of this process is lost: restart the process."

NEXT_STEP = {
    "CUDA_ERROR_OUT_OF_MEMORY": "Send smaller batches, open fewer sessions, or stop other programs on the GPU.",
    "CUDA_ERROR_NO_DEVICE": "Look at nvidia-smi and CUDA_VISIBLE_DEVICES; start a container with --gpus all.",
    "CUDA_ERROR_INVALID_DEVICE": "Give a device that nvidia-smi lists, from cuda:0.",
    "CUDA_ERROR_STUB_LIBRARY": "The toolkit's stub of libcuda was loaded: take its folder out of LD_LIBRARY_PATH.",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "Another program holds the GPU alone: stop it, or see nvidia-smi -c.",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "The driver was upgraded while it ran: restart the machine.",
    "CUDA_ERROR_SYSTEM_NOT_READY": "Start the services of the driver (nvidia-fabricmanager, nvidia-persistenced).",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "This GPU needs a driver as new as CUDA: upgrade the driver.",
    "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER": "Upgrade the driver, or install the cuda-bindings of its CUDA release.",
    "CUDA_ERROR_NOT_FOUND": "The driver is older than the call: upgrade it.",
    "CUDA_ERROR_UNKNOWN": "After a suspend, reload the nvidia_uvm module; else restart the machine.",
    "CUDA_ERROR_OPERATING_SYSTEM": "Raise the limit of locked memory (ulimit -l) and of open files (ulimit -n).",
    "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED": "Close the session that holds the memory first.",
    "CUDA_ERROR_INVALID_CONTEXT": "Open the session in the process that uses it: CUDA does not survive a fork.",
    "CUDA_ERROR_NOT_INITIALIZED": "Open the session in the process that uses it: CUDA does not survive a fork.",
    "CUDA_ERROR_DEINITIALIZED": "The process is ending: close sessions before it does.",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "Compile for this GPU: edgekit compile X.edge --target this",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _RESTART,
    "CUDA_ERROR_MISALIGNED_ADDRESS": _RESTART,
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": _RESTART,
    "CUDA_ERROR_INVALID_PC": _RESTART,
    "CUDA_ERROR_ASSERT": _RESTART,
    "CUDA_ERROR_HARDWARE_STACK_ERROR": _RESTART,
    "CUDA_ERROR_LAUNCH_FAILED": _RESTART,
    "CUDA_ERROR_LAUNCH_TIMEOUT": f"A kernel ran longer than a GPU with a display allows. {_RESTART}",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "The GPU's memory is damaged: see nvidia-smi -q -d ECC, and reset the GPU.",
}
"""CUDA's name of an error -> what the user does next."""

OTHER = "See: edgekit doctor, and dmesg for the driver's own words (Xid)."


class CudaError(BackendError):
    """The CUDA driver refused a call; `name` is CUDA's name of the error ("CUDA_ERROR_OUT_OF_MEMORY")."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name.partition(" ")[0]
        super().__init__(f"CUDA could not {what}: {name}. {NEXT_STEP.get(self.name, OTHER)}")

    @property
    def capture(self) -> bool:
        """Whether it says that something cannot be recorded in a graph, so that running it directly may work."""
        return self.name.startswith("CUDA_ERROR_STREAM_CAPTURE") or self.name in (
            "CUDA_ERROR_NOT_SUPPORTED",
            "CUDA_ERROR_NOT_PERMITTED",
            "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
        )


def checked(result: tuple[Any, ...], what: str) -> Any:
    """The value of a driver call, its error raised. `what` completes "CUDA could not <what>".

    Raises:
        CudaError: the first element of `result` is not CUDA_SUCCESS.
    """
    code = result[0]
    if int(code) != 0:
        raise CudaError(getattr(code, "name", str(code)), what)
    return result[1] if len(result) > 1 else None


class _Answer(int):
    """An error code that the bindings have no name for."""

    name: str


class Guarded:
    """The driver module of cuda-bindings, whose calls raise nothing: what it raises itself becomes an error code.

    It does so for codes that are newer than it is, and for functions that the driver is too old for.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name.startswith("cu") and callable(found):

            def call(*args: Any) -> Any:
                try:
                    return found(*args)
                except ValueError as error:  # an enumeration without that member
                    return (_answer(999, f"an error that cuda-bindings does not know ({error})"),)
                except RuntimeError as error:
                    return (_answer(500, f"CUDA_ERROR_NOT_FOUND ({error})"),)

            setattr(self, name, call)
            return call
        return found


def _answer(code: int, name: str) -> _Answer:
    answer = _Answer(code)
    answer.name = name
    return answer
