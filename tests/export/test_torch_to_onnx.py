"""What PyTorch cannot trace or ONNX cannot say; the exports that work are in test_build.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import ModelError, UsageError
from edgekit.export.torch_runner import TorchRunner
from edgekit.export.torch_to_onnx import onnx_from_program, program_from_torch
from edgekit.graphs import model_specs
from edgekit.tensors import TensorSpec
from tests.export.common import run


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def traced(function, spec: TensorSpec, example: np.ndarray, outputs: tuple[str, ...] = ("y",)):
    runner = TorchRunner(Calls(function).eval(), [spec], model="net", outputs=outputs)
    return program_from_torch(runner, {spec.name: example}), runner


def test_a_module_that_fixes_its_batch_says_so() -> None:
    spec = TensorSpec("x", "float32", ("batch", 4))
    with pytest.raises(UsageError, match=r"works for one size of 'batch' only \(2 was tried\).* --static"):
        traced(lambda x: x.reshape(2, -1), spec, np.zeros((2, 4), np.float32))


def test_a_length_that_python_takes_is_named_as_the_cause() -> None:
    spec = TensorSpec("x", "float32", ("batch", 4))
    with pytest.raises(UsageError, match=r"x\.shape\[0\] rather than len\(x\)"):
        traced(lambda x: x.new_ones(4).expand(len(x), 4) + x, spec, np.zeros((2, 4), np.float32))


def test_python_that_depends_on_data_is_a_sentence() -> None:
    spec = TensorSpec("x", "float32", ("batch", 4))
    with pytest.raises(ModelError, match="PyTorch cannot trace the model of 'net'"):
        traced(lambda x: x + 1 if x.sum() > 0 else x, spec, np.zeros((2, 4), np.float32))


def test_an_operator_without_an_onnx_form_is_named() -> None:
    spec = TensorSpec("x", "float32", (4, 4))
    program, runner = traced(torch.linalg.svdvals, spec, np.eye(4, dtype=np.float32))
    with pytest.raises(ModelError, match=r"Operator aten\._?linalg_svd\S* in the model of 'net' has no ONNX form"):
        onnx_from_program(program, runner, opset=18)


def test_dimensions_that_depend_on_each_other_and_outputs_that_are_inputs() -> None:
    spec = TensorSpec("x", "float32", ("batch", 1, "h", "w"))
    function = lambda x: (nn.functional.pixel_unshuffle(x, 4), x, x)  # noqa: E731 - h and w must be multiples of 4
    program, runner = traced(function, spec, np.zeros((2, 1, 8, 12), np.float32), ("small", "same", "again"))
    proto = onnx_from_program(program, runner, opset=18)
    inputs, outputs = model_specs(proto)
    assert inputs == (spec,)
    assert [o.name for o in outputs] == ["small", "same", "again"]
    assert outputs[0].shape[0] == "batch"
    x = np.random.default_rng(0).random((3, 1, 16, 4), dtype=np.float32)
    got = run(proto, x=x)
    assert got["small"].shape == (3, 16, 4, 1)
    np.testing.assert_array_equal(got["same"], x)
    np.testing.assert_array_equal(got["again"], x)


def test_node_metadata_holds_module_names_and_no_paths() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    spec = TensorSpec("input", "float32", ("batch", 1, 3, 3))
    runner = TorchRunner(net.eval(), [spec], model="net", outputs=("y",))
    proto = onnx_from_program(
        program_from_torch(runner, {"input": np.zeros((2, 1, 3, 3), np.float32)}), runner, opset=18
    )
    (conv, _relu) = proto.graph.node
    assert [p.key for p in conv.metadata_props] == ["pkg.torch.onnx.name_scopes"]
    assert "'0'" in conv.metadata_props[0].value
    assert str(Path(__file__).parent).encode() not in proto.SerializeToString()
    assert str(Path(torch.__file__).parent).encode() not in proto.SerializeToString()


class Takes(nn.Module):
    """As Keras's models take their inputs."""

    def forward(self, *inputs, **options):
        return inputs[0] + 2 * inputs[1]


class TakesOne(nn.Module):
    def forward(self, first, *rest):
        return first + 2 * rest[0]


@pytest.mark.parametrize("module", [Takes(), TakesOne()])
def test_inputs_that_forward_takes_as_arguments_without_names(module: nn.Module) -> None:
    specs = [TensorSpec(name, "float32", ("batch", 4)) for name in ("a", "b")]
    feed = {name: np.random.default_rng(i).random((2, 4), np.float32) for i, name in enumerate("ab")}
    runner = TorchRunner(module.eval(), specs, model="net", outputs=("y",))
    proto = onnx_from_program(program_from_torch(runner, feed), runner, opset=18)
    assert model_specs(proto)[0] == tuple(specs)
    three = {name: np.random.default_rng(i).random((3, 4), np.float32) for i, name in enumerate("ab")}
    np.testing.assert_allclose(run(proto, **three)["y"], three["a"] + 2 * three["b"], rtol=1e-6)
