from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest

import plugins_trt.torch as ops
from edgekit.runtime.ort import OrtSession
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.registry import operators
from tests.plugins_trt.checks import assert_close

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Block(torch.nn.Module):
    """Both kinds of output, an attribute by default and one given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(24))
        self.bias = torch.nn.Parameter(torch.randn(24))

    def forward(self, x: Any, residual: Any) -> Any:
        y, total = ops.layer_norm_residual_sum(x, residual, self.weight, self.bias, epsilon=1e-3)
        return ops.layer_norm_residual(torch.relu(y), total, self.weight, self.bias, rms=1)


def inputs(batch: int) -> tuple[Any, Any]:
    return torch.randn(batch, 5, 24), torch.randn(batch, 5, 24)


def test_the_operators_are_functions_of_the_module() -> None:
    assert set(operators()) <= set(dir(ops))
    assert ops.group_norm_silu.__doc__ == "GroupNorm and SiLU. Inputs: x, weight, bias."
    with pytest.raises(AttributeError, match="no attribute 'batch_norm'"):
        ops.batch_norm  # noqa: B018


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_eager_is_pytorchs_own_result(dtype: str) -> None:
    x = torch.randn(2, 12, 4, 5, dtype=getattr(torch, dtype))
    weight, bias = torch.randn(2, 12, dtype=x.dtype)
    got = ops.group_norm_silu(x, weight, bias, groups=3)
    assert got.dtype == x.dtype
    single = [t.float() for t in (x, weight, bias)]
    want = torch.nn.functional.silu(torch.nn.functional.group_norm(single[0], 3, *single[1:]))
    torch.testing.assert_close(got.float(), want, rtol=1.6e-2, atol=1.6e-2 if dtype != "float32" else 1e-5)


def test_what_the_operator_does_not_take_is_refused_at_the_call() -> None:
    x = torch.randn(2, 8, 3, 3)
    with pytest.raises(UnsupportedCallError, match="8 channels do not divide into 3 groups"):
        ops.group_norm_silu(x, torch.ones(8), torch.ones(8), groups=3)


def test_export_keeps_the_nodes_and_carries_their_functions() -> None:
    module, example = Block().eval(), inputs(2)
    batch = torch.export.Dim("batch")
    model = ops.onnx_from_torch(module, example, dynamic_shapes=({0: batch}, {0: batch}), verbose=False)
    onnx.checker.check_model(model, full_check=True)
    nodes = [node for node in model.graph.node if node.domain == "edgekit"]
    assert [node.op_type for node in nodes] == ["layer_norm_residual_sum", "layer_norm_residual"]
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert attributes[0] == {"epsilon": pytest.approx(1e-3), "rms": 0}
    assert attributes[1] == {"epsilon": pytest.approx(1e-5), "rms": 1}
    assert {f.name for f in model.functions} == {node.op_type for node in nodes}
    with OrtSession(model.SerializeToString()) as session:
        for size in (1, 3):
            given = inputs(size)
            feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.inputs, given)}
            with torch.no_grad():
                want = module(*given).numpy()
            assert_close(list(session.run(feed).values()), [want], relative=1e-4)


def test_int8_leaves_pytorch_as_int8() -> None:
    class Quantized(torch.nn.Module):
        def forward(self, x: Any, residual: Any) -> Any:
            row = torch.ones(24)
            return ops.layer_norm_residual_int8(x, residual, row, row, scale=0.05)

    given = inputs(2)
    model = ops.onnx_from_torch(Quantized().eval(), given, verbose=False)
    with OrtSession(model.SerializeToString()) as session:
        feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.inputs, given)}
        (got,) = session.run(feed).values()
    assert got.dtype == np.int8
    assert_close([got], [Quantized()(*given).numpy()])


def test_an_exported_program_is_saved_and_loaded() -> None:
    module, example = Block().eval(), inputs(2)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, example), file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(*example), module(*example))
