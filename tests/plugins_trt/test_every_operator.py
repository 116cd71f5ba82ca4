"""What every registered operator keeps, held on the calls that it lists itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.engine.build import build_engine
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import load
from edgekit.errors import MissingDependencyError
from edgekit.runtime.ort import OrtSession
from plugins_trt.body import model_of
from plugins_trt.compile import compiled_kernel
from plugins_trt.operator import Call, Operator, numpy_dtype
from plugins_trt.registry import operators
from tests.cuda_on_host.host import run_operator
from tests.plugins_trt.checks import assert_close

TARGETS = (75, 80, 87, 89, 90, 100, 110, 120)
OPERATORS = [pytest.param(op, id=name) for name, op in operators().items()]
SMALL = [
    pytest.param(op, call, id=f"{n}-{i}") for n, op in operators().items() for i, call in enumerate(op.small_examples())
]
SHARED_LIMIT = 48 * 1024


@pytest.mark.parametrize("sm", TARGETS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_it_compiles_for_every_target_without_spills(operator: Operator, sm: int) -> None:
    # Every example, and every tactic of the first, on one target; elsewhere what is most likely to be chosen.
    for index, call in enumerate(operator.examples() if sm == 87 else operator.examples()[:1]):
        for tactic in operator.tactics(call, sm)[: None if sm == 87 and index == 0 else 1]:
            plan = operator.plan(call, tactic=tactic, sm=sm)
            kernel = compiled_kernel(operator, plan, sm=sm)
            assert not kernel.resources.spills, (tactic, kernel.resources)
            assert kernel.resources.shared_bytes + plan.shared_bytes <= SHARED_LIMIT
            assert kernel.resources.registers * plan.threads <= 65536, "the block does not fit into a multiprocessor"


@pytest.mark.parametrize(("operator", "call"), SMALL)
def test_the_awkward_sizes_compile_too(operator: Operator, call: Call) -> None:
    # The host's compiler takes things that NVIDIA's does not, such as an array without elements.
    kernel = compiled_kernel(operator, operator.plan(call, tactic=operator.tactics(call, 87)[0], sm=87), sm=87)
    assert not kernel.resources.spills


@pytest.mark.parametrize(("operator", "call"), SMALL)
def test_the_kernel_agrees_with_the_reference(operator: Operator, call: Call) -> None:
    arrays = operator.sample(call)
    want = operator.reference(call, *arrays)
    assert_close(run_operator(operator, call, *arrays), want)


@pytest.mark.parametrize(("operator", "call"), SMALL)
def test_the_function_body_agrees_with_the_reference(operator: Operator, call: Call) -> None:
    arrays = operator.sample(call)
    model = model_of(operator, call)
    onnx.checker.check_model(model, full_check=True)
    with OrtSession(model.SerializeToString()) as session:
        out = session.run({port.name: raw(array) for port, array in zip(operator.inputs, arrays)})
    types = operator.output_types(call)
    made = [out[name].view(numpy_dtype(t.dtype)) for name, t in zip(operator.outputs, types)]
    assert_close(made, operator.reference(call, *arrays))


def raw(array: np.ndarray) -> np.ndarray:
    """As edgekit's sessions take it: bfloat16 by its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


@pytest.mark.parametrize("operator", OPERATORS)
def test_tensorrt_rtx_builds_an_engine_of_the_function_body(operator: Operator, tmp_path: Path) -> None:
    try:
        module = load("tensorrt-rtx")
    except MissingDependencyError as error:
        pytest.skip(f"needs TensorRT-RTX: {error}")
    path = tmp_path / "model.onnx"
    onnx.save(model_of(operator, operator.examples()[0]), path)
    assert build_engine(path, module=module, sm=86, options=BuildOptions()).data
