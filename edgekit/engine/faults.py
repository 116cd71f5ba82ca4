"""What TensorRT says when it refuses a model, as a sentence with the node, its PyTorch module and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit._lazy import available
from edgekit.engine.trt_module import ParserFault, TrtModule
from edgekit.errors import BackendError, EdgekitError, MissingDependencyError, UnsupportedOperatorError
from edgekit.graphs import all_nodes, load_model, module_of

_OPERATOR = ("UNSUPPORTED_NODE", "UNSUPPORTED_NODE_ATTR", "UNSUPPORTED_NODE_INPUT", "UNSUPPORTED_NODE_DATATYPE")

_PREFIX = re.compile(r"^(?:\[?\w+(?:\.\w+)*::[\w:]+\]?:? ?|Error Code \d+: |[\w ]+ \()+")


def parse_error(module: TrtModule, model: Path, faults: Sequence[ParserFault]) -> EdgekitError:
    """The error for a model that the parser refused; the first fault is named, others are counted."""
    fault = faults[0]
    where = node_text(fault, model)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    reason = reason_text(fault)
    if fault.code.startswith(_OPERATOR) or "No importer registered" in fault.text or "plugin" in fault.text.lower():
        return UnsupportedOperatorError(
            f"{module.title} does not take {where}: {reason}{more}. Replace the operator in the model, "
            "or run the ONNX variant; list every node like it with: edgekit compile X.edge --plan"
        )
    return UnsupportedOperatorError(
        f"{module.title} cannot read '{model.name}' at {where}: {reason}{more}. Change that part of the model and "
        "export again."
    )


def reason_text(fault: ParserFault) -> str:
    """What the parser has against a node; some releases say no more than the failed condition ("false")."""
    lines = [line.strip() for line in fault.text.splitlines() if line.strip() and "catchCudaError" not in line]
    text = _PREFIX.sub("", re.sub(r" In \w+ at /\S+", "", lines[0])).rstrip(" .)")[:400] if lines else ""
    if text.lower() not in ("", "false", "0"):
        return text
    if fault.code == "UNSUPPORTED_NODE":
        return "its parser does not have this operator"
    return f"its parser gives no reason but {fault.code}" if fault.code else "its parser gives no reason"


def node_text(fault: ParserFault, model: Path) -> str:
    """The node of a fault for people: operator, name, and the PyTorch module that it came from."""
    operator, name, origin = fault.operator, fault.name, ""
    node = _find(fault, model)
    if node is not None:
        operator, name, origin = operator or node.op_type, name or node.name, module_of(node)
    if not operator and not name:
        return "the graph"
    text = f"{operator or 'operator'}"
    text += f" (node '{name}'" if name else " ("
    text += f", module '{origin}')" if origin else ")"
    return text.replace(" ()", "")


def _find(fault: ParserFault, model: Path) -> Any:
    if not available("onnx"):
        return None
    try:
        graph = load_model(model)
    except EdgekitError:
        return None
    if fault.name:
        return next((n for n in all_nodes(graph) if n.name == fault.name), None)
    return graph.graph.node[fault.node] if 0 <= fault.node < len(graph.graph.node) else None


def build_error(module: TrtModule, messages: Sequence[str], *, what: str, sm: int) -> EdgekitError:
    """The error for a build that gave no engine; `messages` are what was logged as errors, `what` is the variant."""
    text = "\n".join(messages)
    low = text.lower()
    head = f"{module.title} could not build '{what}' for sm_{sm}"
    if "fp32 gemm is not supported" in low:
        if what != "fp32":
            return BackendError(
                f"{head}: there it has no FP32 matrix products, and a part of this graph is still FP32 "
                "(conversion leaves the bodies of If and Loop). Choose a newer GPU, or run the ONNX variant."
            )
        return BackendError(
            f"{head}: there it has no FP32 matrix products. Compile the FP16 variant: "
            "edgekit quantize X.edge --precision fp16"
        )
    if "workspace limit" in low:
        return BackendError(f"{head}: no kernel fits the workspace limit. Raise --workspace, or leave it out.")
    if any(w in low for w in ("out of memory", "outofmemory", "bad_alloc", "memoryallocation", "insufficient memory")):
        return BackendError(
            f"{head}: out of memory. Stop other programs, give a smaller largest shape with --shapes, "
            "or limit scratch memory with --workspace."
        )
    missing = re.search(r"Unable to load library: ([\w.+-]+)", text)
    if missing is not None:
        return MissingDependencyError(
            f"{head}: its library {missing[1]} is not installed. Leave --version-compatible out, or install it."
        )
    if any(w in low for w in ("cuda driver version is insufficient", "no cuda-capable", "cuda_success", "curesult")):
        return BackendError(
            f"{head}: with these options it needs an NVIDIA GPU and its driver, which this machine lacks. "
            "Leave --refit and --strip out, or build on the device."
        )
    return BackendError(f"{head}: {_plain(messages)}. Look for the cause with: edgekit compile X.edge --plan")


def _plain(messages: Sequence[str]) -> str:
    """The most telling message without the library's call chain."""
    telling = [m for m in messages if "catchCudaError" not in m and "buildSerializedNetwork" in m] or list(messages)
    if not telling:
        return "no reason was given"
    line = telling[-1].strip().splitlines()[0]
    line = re.sub(r" In \w+ at /\S+", "", _PREFIX.sub("", line)).strip(" ().")
    return line[:400] or "no reason was given"
