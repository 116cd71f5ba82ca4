"""The quick plugins, held against NVIDIA's own code (see nvidia.py), and what is refused before it gets there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from typing import Any

import pytest

from plugins_trt.errors import MissingLibraryError, UnsupportedTargetError
from plugins_trt.quick import check_driver, plugin_module, ptx_target
from plugins_trt.registry import operators
from tests.data import ROOT
from tests.plugins_trt.nvidia import INDEX, SM, free_first


@pytest.fixture(scope="module")
def report() -> Any:
    """What NVIDIA's code made of every operator."""
    for module, extra in (("tensorrt_bindings", "dev"), ("tensorrt_rtx_libs", "rtx")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install 'edgekit[{extra}]'")
    command = [sys.executable, "-m", "tests.plugins_trt.nvidia"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_operator_passes_nvidias_validation_and_registers_once(report: Any) -> None:
    assert report["ids"] == [f"edgekit::{name}" for name in operators()] == report["again"]


@pytest.mark.parametrize("name", operators())
def test_the_plugin_describes_its_outputs_and_launch_as_the_operator_does(report: Any, name: str) -> None:
    operator, seen = operators()[name], report["operators"][name]
    call = operator.small_examples()[INDEX]
    outputs = operator.output_types(call)
    assert seen["plugin"] == "_TemplateAOTPlugin"
    assert seen["dtypes"] == [made.dtype for made in outputs]
    shapes = [given.sizes for given in call.inputs]
    for inputs, launch in zip((call.inputs, free_first(call)), seen["launches"]):
        own = operator.call(*inputs, **call.attributes)
        plan = operator.plan(own, tactic=launch["tactic"], sm=SM)
        assert launch["shapes"] == [list(made.sizes) for made in outputs]
        assert launch["types"] == [[t.dtype for t in (*call.inputs, *outputs)]]
        assert launch["tactics"] == list(operator.tactics(own, SM))
        assert (launch["entry"], launch["has_entry"], launch["ptx_target"]) == (plan.entry, True, f"sm_{SM}")
        assert launch["grid"] == list(plan.grid_for(shapes))
        assert launch["block"] == list(plan.block)
        assert launch["shared"] == plan.shared_bytes
        assert launch["scalars"] == list(plan.scalars_for(shapes))
        assert launch["checked"] == [True, True]


def test_tensorrt_without_ahead_of_time_plugins_is_refused() -> None:
    with pytest.raises(UnsupportedTargetError, match=r"TensorRT 10\.3\.0 has no plugins.*10\.9"):
        plugin_module(types.SimpleNamespace(__name__="tensorrt", __version__="10.3.0"))


def test_a_driver_older_than_nvrtc_is_refused_with_the_release_to_install() -> None:
    check_driver((13, 5), (13, 5))
    check_driver((13, 5), (12, 8))
    with pytest.raises(MissingLibraryError, match=r"pip install 'nvidia-cuda-nvrtc==13\.0\.\*'"):
        check_driver((13, 0), (13, 5))
    with pytest.raises(MissingLibraryError, match=r"pip install 'nvidia-cuda-nvrtc-cu12==12\.6\.\*'"):
        check_driver((12, 6), (13, 5))


def test_the_ptx_is_for_the_gpu_or_for_the_last_one_before_it() -> None:
    assert ptx_target(87) == 87
    assert ptx_target(109) == 107
    with pytest.raises(UnsupportedTargetError, match="sm_72 is too old"):
        ptx_target(72)
