from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engine.build import build_engine
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import load
from edgekit.errors import BackendError, EdgekitError, MissingDependencyError, ModelError
from edgekit.gpu import this_gpu
from edgekit.runtime.trt_load import DTYPES, Journal, load_error, open_engine, run_error
from edgekit.trt_api import MODULES, load_module, title_of
from tests.data import ROOT

RECORDED = ROOT / "tests" / "engine" / "attributes"
SOURCES = [
    ROOT / "edgekit" / name for name in ("trt_api.py", "runtime/slot.py", "runtime/trt.py", "runtime/trt_load.py")
]

DAMAGED = (
    "[runtime.cpp::readHeader::765] Error Code 2: Internal Error (Assertion bufferSize >= minBufferSize failed.  In "
    "readHeader at /_src/runtime/dispatch/runtime.cpp:765)"
)
OTHER_GPU = (
    "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an "
    "incompatible device, expecting compute 8.9 got compute 8.6, please rebuild.)"
)
OTHER_RELEASE = (
    "6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.0.0 got "
    "8.0.1, please rebuild."
)
NO_ENGINE = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.magicTag == "
    "kEXPECTED_MAGIC_TAG failed. It is no TRT engine file.)"
)
DRIVER = "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"


@pytest.mark.parametrize(
    ("messages", "kind", "text"),
    [
        ([DAMAGED, DRIVER], ModelError, "damaged or cut short. Copy it again"),
        (
            [OTHER_GPU],
            BackendError,
            r"built for sm_86, and this GPU is sm_89\. Build it on this machine: edgekit compile",
        ),
        ([OTHER_RELEASE], BackendError, "built by another TensorRT"),
        ([NO_ENGINE], ModelError, "no engine, or of another kind of TensorRT"),
        (["Error Code 2: OutOfMemory (no further information)"], BackendError, "out of memory. Stop other programs"),
        ([DRIVER], BackendError, "no NVIDIA driver that is new enough"),
        (["getPluginCreator could not find plugin: ns::x"], MissingDependencyError, "a plugin that it needs"),
        (["Engine carries a lean runtime; host code is not allowed"], BackendError, "runs only with host_code=True"),
        (["Something new. In f at /_src/x.cpp:1"], BackendError, "Something new. Build it on this machine"),
        ([], BackendError, "gave no reason"),
    ],
)
def test_every_refusal_is_a_sentence_with_the_next_step(
    messages: list[str], kind: type[EdgekitError], text: str
) -> None:
    error = load_error(messages, trt="TensorRT 10.16", variant="fp16", sm=89)
    assert type(error) is kind
    assert str(error).startswith("TensorRT 10.16 cannot load engine 'fp16': ")
    with pytest.raises(kind, match=text):
        raise error


def test_either_order_of_the_two_capabilities_is_understood() -> None:
    assert "built for sm_86" in str(load_error([OTHER_GPU], trt="T", variant="v", sm=89))
    assert "built for sm_89" in str(load_error([OTHER_GPU], trt="T", variant="v", sm=86))


def test_a_run_that_fails_names_the_variant() -> None:
    assert "Send smaller batches" in str(run_error(["Cuda failure: out of memory"], variant="v"))
    assert str(run_error(["Bad thing. In f at /a/b.cpp:1"], variant="v")) == (
        "TensorRT failed while running 'v': Bad thing. See: edgekit doctor"
    )


def test_the_journal_keeps_errors_and_passes_the_rest_on(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()
    with caplog.at_level("DEBUG", logger="edgekit.runtime.trt_load"):
        journal.note(1, "bad")
        journal.note(2, "hm")
    assert journal.take() == ["bad"]
    assert journal.take() == []
    assert [r.message for r in caplog.records] == ["TensorRT: bad", "TensorRT: hm"]


@pytest.mark.parametrize("data", [b"", b"garbage", b"ftrt" + bytes(200)])
def test_the_real_runtime_refuses_a_damaged_engine(data: bytes) -> None:
    trt = pytest.importorskip(MODULES["tensorrt-rtx"], reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    with pytest.raises(ModelError, match=r"TensorRT-RTX [\d.]+ cannot load engine 'fp16': the file is"):
        open_engine(trt, data, Journal(), variant="fp16", sm=89)
    assert title_of(trt).startswith("TensorRT-RTX ")


@pytest.fixture(scope="module")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real engine of one convolution, for sm_89."""
    pytest.importorskip(MODULES["tensorrt-rtx"], reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    model = tmp_path_factory.mktemp("rtx") / "conv.onnx"
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, 8, 16, 16]) for n in "xy"]
    weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float16), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], "g", io[:1], io[1:], [weight]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.write_bytes(proto.SerializeToString())
    return build_engine(model, module=load("tensorrt-rtx"), sm=89, options=BuildOptions()).data


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_the_real_runtime_refuses_a_truncated_engine(rtx_engine: bytes, share: float) -> None:
    trt = load_module("tensorrt-rtx")
    with pytest.raises(ModelError, match="damaged or cut short"):
        open_engine(trt, rtx_engine[: int(share * len(rtx_engine))], Journal(), variant="fp16", sm=89)


def test_a_whole_engine_needs_a_gpu(rtx_engine: bytes) -> None:
    if this_gpu() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="no NVIDIA driver that is new enough"):
        open_engine(load_module("tensorrt-rtx"), rtx_engine, Journal(), variant="fp16", sm=89)


def test_the_real_module_has_what_is_looked_up_in_it() -> None:
    trt = pytest.importorskip(MODULES["tensorrt-rtx"], reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    assert load_module("tensorrt-rtx") is trt
    assert set(DTYPES) <= set(trt.DataType.__members__)
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")
    for name in ("cuda_graph_strategy", "set_execution_context_allocation_strategy"):
        assert hasattr(trt.IRuntimeConfig, name)


def recorded(release: str) -> set[str]:
    """Every attribute that classes of that release have."""
    lines = (RECORDED / f"{release}.txt").read_text().splitlines()
    return {line.partition(".")[2] for line in lines if "." in line and not line.startswith("#")}


def asked(path: Path) -> set[str]:
    """Attributes that the code reads of engines, contexts and runtimes, and does not probe for first."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            if name.lstrip("_") in ("engine", "context", "runtime"):
                out.add(node.attr)
    return out


@pytest.mark.parametrize("release", ["10.3", "10.13", "10.16", "11.4"])
def test_every_call_exists_in_every_release(release: str) -> None:
    calls = set().union(*(asked(p) for p in SOURCES))
    assert len(calls) > 15
    others = {"create_runtime_config", "read_bytes"}  # of modules that record graphs themselves; of a path
    assert calls - others - recorded(release) == set()


def test_the_fake_has_no_name_that_tensorrt_lacks() -> None:
    source = ROOT / "tests" / "runtime" / "on_stub" / "fake_trt.py"
    classes = [n for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.ClassDef)]
    names = {
        f.name
        for c in classes
        if c.name in ("ICudaEngine", "IExecutionContext", "Runtime")
        for f in c.body
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")
    }
    assert len(names) > 12
    assert names - recorded("10.16") - {"is_stream_capturable"} == set()


def test_a_module_whose_libraries_do_not_load_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded: libnvinfer\.so\.10"):
        load_module("tensorrt")
