from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from edgekit.engine.faults import build_error, node_text, parse_error, reason_text
from edgekit.engine.trt_module import ParserFault
from edgekit.errors import BackendError, MissingDependencyError, UnsupportedOperatorError
from tests.engine.conftest import saved
from tests.engine.fakes import fake_module
from tests.quantize.nets import model_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    node = helper.make_node("Det", ["x"], ["y"], name="node_det")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'head.volume', 'det']"
    return saved(model_of([node], {}, {"x": (2, 3, 3)}, ["y"]), tmp_path / "det.onnx")


def test_a_node_is_found_by_name_or_by_place(model: Path) -> None:
    wanted = "Det (node 'node_det', module 'head.volume')"
    assert node_text(ParserFault("", "", 7, "node_det", "Det"), model) == wanted
    assert node_text(ParserFault("", "", 0, "", ""), model) == wanted  # old parsers give the index alone
    assert node_text(ParserFault("", "", -1, "", ""), model) == "the graph"
    assert node_text(ParserFault("", "", 5, "", "Foo"), model) == "Foo"
    assert node_text(ParserFault("", "", 0, "", ""), model.with_name("gone.onnx")) == "the graph"


def test_further_faults_are_counted(model: Path) -> None:
    faults = [ParserFault("UNSUPPORTED_NODE", "no importer.", 0, "node_det", "Det")] * 3
    error = parse_error(fake_module("10.3"), model, faults)
    assert isinstance(error, UnsupportedOperatorError)
    assert str(error).startswith("TensorRT 10.3.0 does not take Det (node 'node_det', module 'head.volume')")
    assert "no importer (2 more)" in str(error)


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        ("Cannot compile for Turing (SM75): FP32 GEMM is not supported.", BackendError, "bodies of If and Loop"),
        ("no tactics to implement the operation within workspace limit.", BackendError, "Raise --workspace"),
        ("Error Code 2: OutOfMemory (no further information)", BackendError, "out of memory. Stop other programs"),
        ("[virtualMemoryBuffer.cpp] Error Code 1: Cuda Runtime (out of memory)", BackendError, "--workspace"),
        ("Unable to load library: libnvinfer_lean.so.1: cannot open", MissingDependencyError, "libnvinfer_lean.so.1"),
        ("CHECK(status == CUDA_SUCCESS) failed.", BackendError, "needs an NVIDIA GPU"),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (bad thing. In validate at /_src/a.cpp:1)",
            BackendError,
            "for sm_87: bad thing.",
        ),
    ],
)
def test_what_the_compiler_says_becomes_a_sentence(message: str, kind: type[Exception], says: str) -> None:
    error = build_error(fake_module("10.16"), [message], what="fp16", sm=87)
    assert type(error) is kind
    assert says in str(error)
    assert str(error).startswith("TensorRT 10.16.0 could not build 'fp16' for sm_87: ")
    assert "\n" not in str(error)


def test_a_silent_failure_still_says_something() -> None:
    assert "no reason was given" in str(build_error(fake_module("10.3"), [], what="fp16", sm=87))


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        ("UNSUPPORTED_NODE", "false", "its parser does not have this operator"),
        ("UNSUPPORTED_NODE_ATTR", "false", "its parser gives no reason but UNSUPPORTED_NODE_ATTR"),
        ("UNSUPPORTED_NODE_ATTR", "mode must be linear. ", "mode must be linear"),
        (
            "INTERNAL_ERROR",
            "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError)\n"
            "ITensor::getDimensions: Error Code 4: API Usage Error (scores: IMatrixMultiplyLayer must have same input "
            "types. `A` is of type Float and `B` is of type BFloat16. In validateTypes at "
            "/_src/optimizer/common/nodes/matrixMultiplyNode.cpp:38)\n"
            "ITensor::getDimensions: Error Code 4: API Usage Error (Output shape can not be computed)",
            "scores: IMatrixMultiplyLayer must have same input types. `A` is of type Float and `B` is of type BFloat16",
        ),
        ("", "", "its parser gives no reason"),
    ],
)
def test_a_parser_that_says_only_which_condition_failed_is_put_into_words(code: str, text: str, reason: str) -> None:
    assert reason_text(ParserFault(code, text, 0, "n", "Det")) == reason
