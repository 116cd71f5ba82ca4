from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit.engine.trt_module as trt_module
import edgekit.trt_api as trt_api
from edgekit._lazy import available
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import TrtModule, load
from edgekit.errors import MissingDependencyError, UsageError
from edgekit.quantize.fp16 import half_model
from tests.engine.conftest import saved
from tests.engine.fakes import RELEASES, fake_module, recorded
from tests.quantize.nets import conv_net


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_builds_strongly_typed(release: str) -> None:
    module = fake_module(release)
    members = recorded(release)["NetworkDefinitionCreationFlag"]
    assert module.network_flags() & (1 << members.index("STRONGLY_TYPED"))
    assert ("EXPLICIT_BATCH" in members) == (release != "11.4")  # the attribute went away, and we do not ask for it
    assert module.tag == f"trt{release}"
    assert module.title == f"TensorRT {release}.0"
    assert not module.cross_compiles
    assert module.capabilities() == ()


@pytest.mark.parametrize(
    ("release", "editable", "quick", "same"),
    [
        ("10.3", False, False, False),
        ("10.13", True, True, True),
        ("10.16", True, True, True),
        ("11.4", True, True, True),
    ],
)
def test_gates_open_with_the_release_that_brings_the_feature(
    release: str, editable: bool, quick: bool, same: bool
) -> None:
    module = fake_module(release)
    assert module.has_timing_cache
    assert module.has_progress
    assert module.editable_timing_cache is editable
    assert module.has_quick_plugins is quick
    assert (module.refused(BuildOptions(hardware="same")) == []) is same
    everywhere = BuildOptions(hardware="ampere+", version_compatible=True, strip=True, refit=True, dla=0, sparsity=True)
    assert module.refused(everywhere) == []


def test_what_a_release_lacks_is_named() -> None:
    with pytest.raises(UsageError, match=r"TensorRT 10\.3\.0 has no --hardware same"):
        fake_module("10.3").check(BuildOptions(hardware="same"))


def test_a_release_without_strong_types_is_refused() -> None:
    old = fake_module("10.3")
    del old.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    with pytest.raises(UsageError, match="TensorRT 10.3 or later"):
        old.network_flags()


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_that_is_used_without_a_probe_is_in_every_release(release: str) -> None:
    """A misspelt enumeration or member fails here instead of on a Jetson."""
    names = recorded(release)
    tree = ast.parse(Path(trt_module.__file__).read_text())
    used = {
        (node.value.attr, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and isinstance(node.value.value, ast.Name)
        and node.value.value.id == "trt"
    }
    used |= {("HardwareCompatibilityLevel", "AMPERE_PLUS")}
    used |= {("ProfilingVerbosity", v) for v in trt_module.VERBOSITY.values()}
    used.discard(("ComputeCapability", "f"))
    assert ("MemoryPoolType", "WORKSPACE") in used
    assert {(o, a) for o, a in used if a not in names.get(o, []) and not a.startswith("__")} == set()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("owner", "attributes"),
    [
        ("Builder", "create_network create_builder_config create_optimization_profile build_serialized_network"),
        (
            "IBuilderConfig",
            "add_optimization_profile builder_optimization_level create_timing_cache default_device_type DLA_core "
            "get_timing_cache hardware_compatibility_level profiling_verbosity progress_monitor set_flag "
            "set_memory_pool_limit set_timing_cache",
        ),
        ("OnnxParser", "parse_from_file num_errors get_error"),
        ("ParserError", "code desc node node_name node_operator"),
        ("IOptimizationProfile", "set_shape"),
        ("ITimingCache", "serialize"),
        ("ICudaEngine", "create_engine_inspector device_memory_size_v2"),
        ("EngineInspector", "get_engine_information"),
        ("Runtime", "deserialize_cuda_engine engine_host_code_allowed"),
        ("IProgressMonitor", "phase_start step_complete phase_finish"),
        ("BuilderFlag", "VERSION_COMPATIBLE STRIP_PLAN REFIT REFIT_IDENTICAL SPARSE_WEIGHTS GPU_FALLBACK"),
        ("LayerInformationFormat", "JSON"),
    ],
)
def test_every_call_is_there_in_every_release(release: str, owner: str, attributes: str) -> None:
    assert set(attributes.split()) - set(recorded(release)[owner]) == set()
    source = "".join(Path(str(m.__file__)).read_text() for m in (trt_module, trt_api))
    assert all(name in source for name in attributes.split()), "this list holds names that edgekit does not use"


def test_tensorrt_rtx_compiles_for_other_gpus(rtx: TrtModule) -> None:
    assert rtx.cross_compiles
    assert {75, 80, 86, 89, 120} <= set(rtx.capabilities())
    assert rtx.tag.startswith("rtx")
    assert not rtx.has_timing_cache  # its timing caches do nothing
    assert rtx.refused(BuildOptions(hardware="same")) == ["--hardware same"]
    assert rtx.refused(BuildOptions(dla=0)) == ["--dla"]


def test_a_missing_module_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingDependencyError, match=r"not installed.*pip install 'edgekit\[rtx\]'"):
        load("tensorrt-rtx")


def test_a_missing_library_is_told_from_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded: libnvinfer\.so\.10"):
        load("tensorrt")


def test_the_real_bindings_accept_our_calls(tmp_path: Path) -> None:
    """NVIDIA's own tensorrt bindings, in a process of their own: a configuration is made by edgekit's code."""
    pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    if not available("tensorrt_bindings"):  # found, not imported: it needs TensorRT itself
        pytest.skip("needs NVIDIA's bindings: pip install tensorrt-cu13-bindings")
    script = Path(__file__).with_name("contract.py")
    model = saved(half_model(conv_net()), tmp_path / "net.onnx")
    done = subprocess.run([sys.executable, str(script), str(model)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "contract held" in done.stdout
